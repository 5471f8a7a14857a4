//! Owns the demo's acts of NetworkPolicy: nobody reaches the backend, then the frontend alone does;
//! and what `portway explain` says.

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
const ASKERS: [&str; 3] = ["frontend", "stranger", "a client from outside"];
/// Each that is refused takes as long as a probe is patient.
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

/// Nobody is refused, everybody, then everybody but the frontend.
///
/// # Errors
/// If a pod cannot be started, a manifest cannot be written, or a request cannot even be tried.
pub fn network_policy(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step("Three more pods: backend and stranger on node1, frontend on node2. Without a policy, who reaches the backend?");
    let backend = start(stage)?;
    show(stage, backend, &ASKERS, say)?;
    say.done("");

    say.step(&format!(
        "{DENY}: pods with the label app: backend, and no rule that lets anybody in"
    ));
    put(stage, DENY)?;
    settled(stage, backend, "frontend", Reach::Refused)?;
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
    say.expect(
        "pods that no policy selects are reached as before",
        &against,
    );
    drop_is_named(stage, say)?;
    say.done("");

    say.step(&format!(
        "{ALLOW}: beside it, a rule that lets pods with the label app: frontend in"
    ));
    put(stage, ALLOW)?;
    settled(stage, backend, "frontend", Reach::LetThrough)?;
    show(stage, backend, &ASKERS[..1], say)?;
    explain(stage, say)?;
    [DENY, ALLOW].iter().try_for_each(|file| {
        fs::remove_file(stage.manifests.join(file)).with_context(|| format!("remove {file}"))
    })?;
    settled(stage, backend, "stranger", Reach::LetThrough)?;
    say.done("the policies are removed, and everybody is let through again");
    Ok(())
}

/// The log of the backend's node says who was refused, and by which policy.
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
        "the log of the backend's node names who was refused, and the policy",
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
    for asker in ASKERS {
        settled(stage, backend, asker, Reach::LetThrough)?;
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
    LetThrough,
    Refused,
}

/// Waits until one asker is let through, or is not.
fn settled(stage: &Stage, backend: Backend, asker: &str, wanted: Reach) -> Result<()> {
    let what = match wanted {
        Reach::LetThrough => format!("{asker} to be let through"),
        Reach::Refused => format!("{asker} to be refused"),
    };
    eventually(TAKES_EFFECT, &what, || {
        let ways = ask(stage, backend, asker, 1)?;
        let as_wanted = ways
            .iter()
            .all(|(_, tally)| (tally.served() > 0) == (wanted == Reach::LetThrough));
        Ok(as_wanted.then_some(()))
    })
}

/// Asks from a client and returns each address with its outcome.
fn ask(stage: &Stage, backend: Backend, asker: &str, count: usize) -> Result<Vec<(String, Tally)>> {
    let survey = |addr| probe::survey(Kind::Http, addr, count);
    if asker == ASKERS[2] {
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
        .pod(asker)?
        .ns()
        .run(|| Ok(ways.map(|(way, addr)| (format!("{way}{addr}"), survey(addr)))))?;
    Ok(tallies.into())
}

/// Asks for everybody, and compares with who should be let through.
fn show(stage: &Stage, backend: Backend, let_through: &[&str], say: &mut Say) -> Result<()> {
    let asked: Result<Vec<_>> = std::thread::scope(|scope| {
        let asking = ASKERS.map(|asker| {
            (
                asker,
                scope.spawn(move || ask(stage, backend, asker, REQUESTS)),
            )
        });
        let answers = asking.map(|(asker, thread)| {
            let ways = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            ways.map(|ways| (asker, ways))
        });
        answers.into_iter().collect()
    });
    let mut table = Table::new(["who", "asks", "is"]);
    let mut against = Vec::new();
    for (asker, ways) in asked? {
        for (way, tally) in ways {
            let (is, came) = match (tally.served(), tally.unserved()) {
                (_, 0) => ("let through".to_owned(), Some(Reach::LetThrough)),
                (0, _) => (format!("refused ({tally})"), Some(Reach::Refused)),
                _ => (tally.to_string(), None),
            };
            let owed = if let_through.contains(&asker) {
                Reach::LetThrough
            } else {
                Reach::Refused
            };
            against.extend((came != Some(owed)).then(|| format!("{asker} at {way}: {is}")));
            table.row([asker.to_owned(), way, is]);
        }
    }
    say.show(table);
    let what = match let_through {
        [] => {
            "everybody is refused, by the pod's address, by the Service and from outside".to_owned()
        }
        all if all.len() == ASKERS.len() => "everybody is let through".to_owned(),
        some => format!(
            "{} is let through, everybody else is refused",
            some.join(", ")
        ),
    };
    say.expect(&what, &against);
    Ok(())
}

/// Runs `portway explain` for a client that is let through and for one that is not.
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
        let said = stage.portway(
            node,
            &["explain", "--manifests", &directory, from, "backend:80"],
        )?;
        say.show(format!(
            "$ portway explain --manifests DIR {from} backend:80"
        ));
        said.lines().for_each(|line| say.show(format!("  {line}")));
        let right = said.contains(verdict) && said.contains(because);
        let against: Vec<String> = (!right)
            .then(|| "it says something else".to_owned())
            .into_iter()
            .collect();
        say.expect(
            &format!("explain says that {from} {verdict}, and why"),
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
