//! Owns the acts about Services: each sends requests, prints the outcome as a table and checks it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use super::say::{Say, Table};
use super::stage::{Stage, cluster_ip_and_node_port, eventually};
use crate::lab::facts::Facts;
use crate::lab::node::Node;
use crate::lab::probe::{self, Answer, Kind, Tally};
use crate::lab::topology::{FAR_CLIENT, Family};

pub(super) const WEB: [&str; 3] = ["web-1", "web-2", "web-3"];
const NODE_PORT: u16 = 30080;
/// Enough that fewer than one demo in a million misses one of the three pods by chance.
pub(super) const REQUESTS: usize = 60;
/// Time limit for an edited manifest to be in force everywhere.
const TAKES_EFFECT: Duration = Duration::from_secs(5);

/// Sends requests from outside to each node's nodePort, over both families.
///
/// # Errors
/// If a request cannot be sent.
pub fn node_port(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step(&format!("{REQUESTS} requests from outside to port {NODE_PORT} of each node, over IPv4 and IPv6: which pods answer?"));
    let mut table = Table::new(["to", "web-1", "web-2", "web-3", "other"]);
    let mut against = Vec::new();
    for (node, family) in stage
        .lab
        .nodes()
        .iter()
        .flat_map(|node| Family::BOTH.map(|family| (node, family)))
    {
        let tally = from_outside(stage, node, family)?;
        table.row(row_of_pods(&node_label(node, family), &tally));
        against.extend(
            (tally.pods() != WEB || tally.unserved() > 0)
                .then(|| format!("{} got {tally}", node_label(node, family))),
        );
    }
    say.show(table);
    say.expect(
        "every node reaches all three pods, even node3, which runs none of them",
        &against,
    );
    say.done("");
    Ok(())
}

/// Shows the client addresses that pods see.
///
/// # Errors
/// If a request cannot be sent.
pub fn client_address(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step(&format!(
        "Which client address do the pods see in requests from {}?",
        FAR_CLIENT.v4
    ));
    let mut table = Table::new(["request to", "web-1 sees", "web-2 sees", "web-3 sees"]);
    let mut against = Vec::new();
    for node in stage.lab.nodes() {
        let seen = seen_by_pods(stage, node)?;
        let cell = |pod: &str| {
            seen.get(pod)
                .map_or("nothing".to_owned(), |ip| client_label(stage, *ip))
        };
        table.row([
            node.name().to_owned(),
            cell("web-1"),
            cell("web-2"),
            cell("web-3"),
        ]);
        for pod in WEB {
            let here = node.pods().iter().any(|own| own.name() == pod);
            let expected = if here {
                FAR_CLIENT.v4.into()
            } else {
                node.addresses().v4.into()
            };
            against
                .extend((seen.get(pod) != Some(&expected)).then(|| {
                    format!("for a request to {}, {pod} sees {}", node.name(), cell(pod))
                }));
        }
    }
    say.show(table);
    say.expect(
        "a pod on the node that got the request sees the client, a pod on another node sees that node",
        &against,
    );
    say.done("");
    Ok(())
}

/// Asks a Service with three ports, TCP and UDP, at its nodePorts and its cluster IP.
///
/// # Errors
/// If a request cannot be sent.
pub fn three_ports(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step("Service web-ports: its nodePorts, its own ports and the container's ports are different numbers");
    let mut table = Table::new([
        "port",
        "cluster IP",
        "nodePort",
        "container port",
        "answers from outside",
        "from a pod",
    ]);
    let mut against = Vec::new();
    for (name, port, target, kind) in [
        ("web", 8080, 80, Kind::Http),
        ("admin", 9000, 9090, Kind::Http),
        ("names", 5353, 53, Kind::Udp),
    ] {
        let (cluster_ip, node_port) = cluster_ip_and_node_port(
            &stage.wait_for_frontend(&format!("default/web-ports:{name}"))?,
        )?;
        let node: SocketAddr = (stage.lab.node("node3")?.addresses().v4, node_port).into();
        let outside = stage.lab.far_client().run(|| Ok(ask_many(kind, node)))?;
        let inside = stage
            .lab
            .pod("visitor")?
            .ns()
            .run(|| Ok(ask_many(kind, (cluster_ip, port).into())))?;
        let way = if kind == Kind::Udp { "UDP " } else { "" };
        let cells = [
            format!("{cluster_ip}:{port}"),
            format!("{way}{node_port}"),
            target.to_string(),
        ];
        let answered = [&outside, &inside].map(|answers| reached(answers, target));
        for (from, reached) in ["from outside", "from a pod"].into_iter().zip(&answered) {
            against.extend(
                (*reached != 20).then(|| {
                    format!("{name}: {reached} of 20 requests {from} reached port {target}")
                }),
            );
        }
        let [cluster, nodes, container] = cells;
        table.row([
            name.to_owned(),
            cluster,
            nodes,
            container,
            format!("{} of 20", answered[0]),
            format!("{} of 20", answered[1]),
        ]);
    }
    say.show(table);
    say.expect(
        "each Service port reaches its own container port, given by name or by number, TCP or UDP",
        &against,
    );
    say.done("");
    Ok(())
}

/// Edits the manifest to externalTrafficPolicy Local, and back.
///
/// # Errors
/// If the manifest cannot be edited, or a request cannot be sent.
pub fn local_policy(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step("Edit web-nodeport.yaml: externalTrafficPolicy: Local");
    let text = stage.read("web-nodeport.yaml")?;
    let cluster = "externalTrafficPolicy: Cluster";
    let edited = text
        .contains(cluster)
        .then(|| text.replace(cluster, "externalTrafficPolicy: Local"));
    stage.write(
        "web-nodeport.yaml",
        &edited.with_context(|| format!("find {cluster} in web-nodeport.yaml"))?,
    )?;
    let settled = wait_until_local(stage);
    let mut table = Table::new(["to", "web-1", "web-2", "web-3", "other", "the pods see"]);
    let mut against: Vec<String> = settled
        .err()
        .map(|e| format!("{e:#}"))
        .into_iter()
        .collect();
    for node in stage.lab.nodes() {
        let tally = from_outside(stage, node, Family::V4)?;
        let clients: Vec<String> = tally
            .clients()
            .iter()
            .map(|ip| client_label(stage, *ip))
            .collect();
        let mut row = row_of_pods(&node_label(node, Family::V4), &tally);
        row.push(clients.join(", "));
        table.row(row);
        against.extend(not_local(node, &tally).map(|why| format!("{}: {why}", node.name())));
    }
    say.show(table);
    say.expect("only pods on the node that got the request answer, they see the client, and node3, without pods, refuses", &against);
    stage.write("web-nodeport.yaml", &text)?;
    eventually(TAKES_EFFECT, "the undone edit to take effect", || {
        let everywhere: Result<Vec<Tally>> = stage
            .lab
            .nodes()
            .iter()
            .map(|node| from_outside(stage, node, Family::V4))
            .collect();
        Ok(everywhere?
            .iter()
            .all(|tally| tally.pods() == WEB)
            .then_some(()))
    })?;
    say.done("the edit is undone");
    Ok(())
}

pub(super) fn from_outside(stage: &Stage, node: &Node, family: Family) -> Result<Tally> {
    let addr = (node.addresses().of(family), NODE_PORT).into();
    stage
        .lab
        .far_client()
        .run(|| Ok(probe::survey(Kind::Http, addr, REQUESTS)))
}

fn node_label(node: &Node, family: Family) -> String {
    format!(
        "{} {}",
        node.name(),
        SocketAddr::new(node.addresses().of(family), NODE_PORT)
    )
}

/// A label, how often each web pod answered, and what else came back.
pub(super) fn row_of_pods(label: &str, tally: &Tally) -> Vec<String> {
    let others = Tally {
        by_pod: BTreeMap::new(),
        ..tally.clone()
    };
    let others = if tally.unserved() == 0 {
        String::new()
    } else {
        others.to_string()
    };
    [label.to_owned()]
        .into_iter()
        .chain(WEB.map(|pod: &str| {
            tally
                .by_pod
                .get(pod)
                .map_or("-".to_owned(), usize::to_string)
        }))
        .chain([others])
        .collect()
}

/// The client address that each pod sees when the node is asked; the last one, if they differ.
fn seen_by_pods(stage: &Stage, node: &Node) -> Result<BTreeMap<String, IpAddr>> {
    let addr = (node.addresses().v4, NODE_PORT).into();
    stage.lab.far_client().run(|| {
        let answers = probe::answers(Kind::Http, addr, REQUESTS);
        Ok(answers
            .iter()
            .filter_map(Answer::served)
            .map(|facts| (facts.pod.clone(), facts.client_ip()))
            .collect())
    })
}

fn client_label(stage: &Stage, ip: IpAddr) -> String {
    let node = stage
        .lab
        .nodes()
        .iter()
        .find(|node| node.addresses().both().contains(&ip));
    let who = if FAR_CLIENT.both().contains(&ip) {
        Some("the client")
    } else {
        node.map(Node::name)
    };
    who.map_or(ip.to_string(), |who| format!("{ip} ({who})"))
}

fn ask_many(kind: Kind, addr: SocketAddr) -> Vec<Answer> {
    probe::answers(kind, addr, 20)
}

/// Returns the number of answers from this port of a container.
fn reached(answers: &[Answer], port: u16) -> usize {
    let facts = answers.iter().filter_map(Answer::served);
    facts
        .filter(|facts: &&Facts| facts.server.port() == port && WEB.contains(&facts.pod.as_str()))
        .count()
}

/// Waits until the node without pods refuses.
fn wait_until_local(stage: &Stage) -> Result<()> {
    let addr = (stage.lab.node("node3")?.addresses().v4, NODE_PORT).into();
    eventually(TAKES_EFFECT, "node3 to refuse", || {
        stage
            .lab
            .far_client()
            .run(|| Ok((probe::http(addr) == Answer::Refused).then_some(())))
    })
}

/// Returns an objection if the node does not obey externalTrafficPolicy Local.
fn not_local(node: &Node, tally: &Tally) -> Option<String> {
    let own: Vec<&str> = node
        .pods()
        .iter()
        .map(|pod| pod.name())
        .filter(|name| WEB.contains(name))
        .collect();
    let right = match own.is_empty() {
        true => tally.refused == REQUESTS,
        false => {
            tally.pods() == own
                && tally.unserved() == 0
                && tally.clients() == [IpAddr::from(FAR_CLIENT.v4)]
        }
    };
    (!right).then(|| format!("{tally}, seen as {:?}", tally.clients()))
}
