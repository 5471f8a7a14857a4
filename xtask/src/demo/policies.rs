//! Owns the acts about NetworkPolicy: nobody reaches the backend, then the frontend alone does, and
//! `portway explain` gives the reason.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::say::{Say, Table};
use super::stage::{Stage, cluster_ip_and_node_port, eventually};
use crate::lab::probe::{self, Kind, Tally};
use crate::lab::topology::{Family, PodSpec, Serves};

/// Directory of the policies in the source tree.
const POLICIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/policies");
const DENY: &str = "deny-backend.yaml";
const ALLOW: &str = "allow-frontend.yaml";
/// The clients that ask the backend.
const CLIENTS: [&str; 3] = ["frontend", "stranger", "a client from outside"];
/// Few: each denied request takes the whole timeout of a probe.
const REQUESTS: usize = 2;
/// Time limit for a policy to be in force.
const TAKES_EFFECT: Duration = Duration::from_secs(5);

/// The backend's address and port.
#[derive(Clone, Copy)]
struct Backend {
    pod: SocketAddr,
    service: SocketAddr,
    node_port: SocketAddr,
}

/// Shows the backend without a policy, with one that denies everybody, and with one more that
/// allows the frontend.
///
/// # Errors
/// If a pod cannot be started, a manifest cannot be written, or a request cannot be sent.
pub fn network_policy(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step("Three more pods: backend and stranger on node1, frontend on node2. Without a policy, who reaches the backend?");
    let backend = start(stage)?;
    show(stage, backend, &CLIENTS, say)?;
    say.done("");

    say.step(&format!(
        "Add {DENY}: it selects pods with label app: backend, and no rule allows anybody"
    ));
    put(stage, DENY)?;
    settled(stage, backend, "frontend", Reach::Denied)?;
    show(stage, backend, &[], say)?;
    let tally = stage.lab.pod("stranger")?.ns().run(|| {
        Ok(probe::survey(
            Kind::Http,
            (web_pod(stage)?, 80).into(),
            REQUESTS,
        ))
    })?;
    let against: Vec<String> = (tally.served() != REQUESTS)
        .then(|| tally.to_string())
        .into_iter()
        .collect();
    say.expect("pods that no policy selects are still reachable", &against);
    drop_is_named(stage, say)?;
    say.done("");

    say.step(&format!(
        "Add {ALLOW}: a rule that allows pods with label app: frontend"
    ));
    put(stage, ALLOW)?;
    settled(stage, backend, "frontend", Reach::Allowed)?;
    show(stage, backend, &CLIENTS[..1], say)?;
    explain(stage, say)?;
    [DENY, ALLOW].iter().try_for_each(|file| {
        fs::remove_file(stage.manifests.join(file)).with_context(|| format!("remove {file}"))
    })?;
    settled(stage, backend, "stranger", Reach::Allowed)?;
    say.done("the policies are removed, and everybody is allowed again");
    Ok(())
}

/// Checks that the agent's log on the backend's node names the denied pod and the policy.
fn drop_is_named(stage: &Stage, say: &mut Say) -> Result<()> {
    let named = |line: &&str| {
        line.contains("default/stranger")
            && line.contains("may not reach default/backend")
            && line.contains("deny-backend")
    };
    let mut line = None;
    let found = eventually(
        TAKES_EFFECT,
        "the drop to be named in the log of node1's agent",
        || {
            let log = stage
                .agents
                .first()
                .map(crate::lab::agent::Agent::log)
                .unwrap_or_default();
            line = log.lines().find(named).map(str::to_owned);
            Ok(line.is_some().then_some(()))
        },
    );
    line.into_iter().for_each(|line| say.show(line));
    let against: Vec<String> = found
        .err()
        .map(|why| format!("{why:#}"))
        .into_iter()
        .collect();
    say.expect(
        "the agent's log on that node names the denied pod and the policy",
        &against,
    );
    Ok(())
}

/// Brings up the pods and the Service.
fn start(stage: &mut Stage) -> Result<Backend> {
    let pod = |name: &str| PodSpec::new(name).label("app", name);
    let server = pod("backend").serving_as("http", 80, Serves::Http);
    stage
        .lab
        .node_mut("node1")?
        .add_pods(vec![server, pod("stranger")])?;
    stage
        .lab
        .node_mut("node2")?
        .add_pods(vec![pod("frontend")])?;
    stage.write_cluster()?;
    put(stage, "backend.yaml")?;
    let (cluster_ip, node_port) =
        cluster_ip_and_node_port(&stage.wait_for_frontend("default/backend:http")?)?;
    let backend = Backend {
        pod: (stage.lab.pod("backend")?.addresses().of(Family::V4), 80).into(),
        service: (cluster_ip, 80).into(),
        node_port: (
            stage.lab.node("node1")?.addresses().of(Family::V4),
            node_port,
        )
            .into(),
    };
    for client in CLIENTS {
        settled(stage, backend, client, Reach::Allowed)?;
    }
    Ok(backend)
}

fn put(stage: &Stage, file: &str) -> Result<()> {
    let text = fs::read_to_string(Path::new(POLICIES).join(file))
        .with_context(|| format!("read {file}"))?;
    stage.write(file, &text)
}

fn web_pod(stage: &Stage) -> Result<std::net::IpAddr> {
    Ok(stage.lab.pod("web-1")?.addresses().of(Family::V4))
}

/// The expected outcome of a client's requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Allowed,
    Denied,
}

/// Waits until one client is allowed or denied, as wanted.
fn settled(stage: &Stage, backend: Backend, client: &str, wanted: Reach) -> Result<()> {
    let what = match wanted {
        Reach::Allowed => format!("{client} to be allowed"),
        Reach::Denied => format!("{client} to be denied"),
    };
    eventually(TAKES_EFFECT, &what, || {
        let ways = ask(stage, backend, client, 1)?;
        let as_wanted = ways
            .iter()
            .all(|(_, tally)| (tally.served() > 0) == (wanted == Reach::Allowed));
        Ok(as_wanted.then_some(()))
    })
}

/// Asks from a client and returns each address with its outcome.
fn ask(
    stage: &Stage,
    backend: Backend,
    client: &str,
    count: usize,
) -> Result<Vec<(String, Tally)>> {
    let survey = |addr| probe::survey(Kind::Http, addr, count);
    if client == CLIENTS[2] {
        let tally = stage
            .lab
            .far_client()
            .run(|| Ok(survey(backend.node_port)))?;
        return Ok(vec![(format!("node1's port {}", backend.node_port), tally)]);
    }
    let ways = [
        ("the pod itself, ", backend.pod),
        ("Service backend, ", backend.service),
    ];
    let tallies = stage
        .lab
        .pod(client)?
        .ns()
        .run(|| Ok(ways.map(|(way, addr)| (format!("{way}{addr}"), survey(addr)))))?;
    Ok(tallies.into())
}

/// Asks from every client, and compares with those that should be allowed.
fn show(stage: &Stage, backend: Backend, allowed: &[&str], say: &mut Say) -> Result<()> {
    let asked: Result<Vec<_>> = std::thread::scope(|scope| {
        let asking = CLIENTS.map(|client| {
            (
                client,
                scope.spawn(move || ask(stage, backend, client, REQUESTS)),
            )
        });
        let answers = asking.map(|(client, thread)| {
            let ways = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            ways.map(|ways| (client, ways))
        });
        answers.into_iter().collect()
    });
    let mut table = Table::new(["from", "to", "outcome"]);
    let mut against = Vec::new();
    for (client, ways) in asked? {
        for (way, tally) in ways {
            let (is, came) = match (tally.served(), tally.unserved()) {
                (_, 0) => ("allowed".to_owned(), Some(Reach::Allowed)),
                (0, _) => (format!("denied ({tally})"), Some(Reach::Denied)),
                _ => (tally.to_string(), None),
            };
            let wanted = if allowed.contains(&client) {
                Reach::Allowed
            } else {
                Reach::Denied
            };
            against.extend((came != Some(wanted)).then(|| format!("{client} at {way}: {is}")));
            table.row([client.to_owned(), way, is]);
        }
    }
    say.show(table);
    let what = match allowed {
        [] => {
            "everybody is denied: at the pod's address, at the Service and from outside".to_owned()
        }
        all if all.len() == CLIENTS.len() => "everybody is allowed".to_owned(),
        some => format!("only {} is allowed", some.join(", ")),
    };
    say.expect(&what, &against);
    Ok(())
}

/// Runs `portway explain` for a client that is allowed and for one that is denied.
fn explain(stage: &Stage, say: &mut Say) -> Result<()> {
    let node = stage.lab.node("node1")?;
    let directory = stage.manifests.to_string_lossy().into_owned();
    for (from, verdict, because) in [
        (
            "frontend",
            "is allowed",
            "allowed by rule 1 of default/allow-frontend",
        ),
        ("stranger", "is DENIED", "default/stranger has app=stranger"),
    ] {
        let output = stage.portway(
            node,
            &["explain", "--manifests", &directory, from, "backend:80"],
        )?;
        say.show(format!(
            "$ portway explain --manifests DIR {from} backend:80"
        ));
        output
            .lines()
            .for_each(|line| say.show(format!("  {line}")));
        let right = output.contains(verdict) && output.contains(because);
        let against: Vec<String> = (!right)
            .then(|| "the output differs".to_owned())
            .into_iter()
            .collect();
        say.expect(
            &format!("explain reports that {from} {verdict}, and the reason"),
            &against,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(file: &str) -> Value {
        let text = fs::read_to_string(Path::new(POLICIES).join(file)).expect("a policy");
        serde_norway::from_str(&text).expect("yaml")
    }

    #[test]
    fn both_policies_are_about_the_backend_and_one_has_no_rule() {
        let selected = json!({ "matchLabels": { "app": "backend" } });
        assert_eq!(
            [DENY, ALLOW].map(|file| policy(file)["spec"]["podSelector"].clone()),
            [selected.clone(), selected]
        );
        assert!(policy(DENY)["spec"]["ingress"].is_null());
        assert_eq!(
            policy(ALLOW)["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["app"],
            "frontend"
        );
    }
}
