//! Connections from before the first agent: those that others translate go on, and are judged as
//! connections.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::controlplane::{ObjectRef, wait_for};
use xtask::lab::netns::Namespace;
use xtask::lab::node::Node;
use xtask::lab::probe::{Kind, Session};
use xtask::lab::topology::{FAR_CLIENT, Join, Wiring};

use crate::cluster::{Cluster, IN_FORCE, WEB, ask};

/// A connection from before the agent, with its client.
struct OpenConnection {
    what: String,
    from: From,
    session: Session,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Visitor,
    Far,
    Node,
}

/// P25: the web pods may ask nobody and the visitor may be asked by nobody, so that an answer
/// passes only if it is known as one. P28: the visitor may ask web pods, not their Service's
/// address. P30: they are judged by what is allowed now. P18: the node reaches its own pods.
#[test]
fn connections_from_before_go_on_and_are_judged() -> Result<()> {
    let mut cluster = Cluster::start(Wiring::PointToPoint, Join::Routes)?;
    for (agent, node) in std::mem::take(&mut cluster.agents)
        .into_iter()
        .zip(cluster.lab.nodes())
    {
        agent.kill();
        let unload = [
            &["unload".as_ref(), "--state-dir".as_ref()],
            &[node.state_dir().as_os_str()][..],
        ]
        .concat();
        node.ns()
            .output(Command::new(&cluster.spec.portway).args(unload))?;
        translate_as_others_do(&cluster, node)?;
    }
    let mut open = connections(&cluster)?;
    for object in policies(&[visitor(), far()]) {
        cluster.plane.client().apply(&object)?;
    }
    let agents = cluster
        .lab
        .nodes()
        .iter()
        .map(|node| cluster.spec.start(node))
        .collect::<Result<Vec<_>>>()?;
    cluster.agents = agents;
    let direct = cluster.lab.pod("web-1")?.addresses().both();
    for ip in direct {
        wait_for("policies to be in force", IN_FORCE, || {
            Ok(
                (ask(cluster.lab.near_client(), Kind::Http, ip, 8080, 2)?.served() == 0)
                    .then_some(()),
            )
        })?;
    }
    for OpenConnection { what, session, .. } in &mut open {
        session
            .ask()
            .with_context(|| format!("{what}, with an agent since"))?;
    }
    // What is new is translated by us, and allowed or denied like any other.
    for ip in cluster.cluster_ips("web")? {
        ensure!(
            ask(cluster.lab.pod("visitor")?.ns(), Kind::Http, ip, 80, 4)?.served() == 4,
            "the visitor reaches {ip}"
        );
    }
    for ip in cluster.lab.pod("web-3")?.addresses().both() {
        ensure!(
            ask(cluster.lab.pod("web-1")?.ns(), Kind::Http, ip, 8080, 2)?.served() == 0,
            "an isolated web pod reaches {ip}"
        );
    }
    for object in policies(&[visitor()]) {
        cluster.plane.client().apply(&object)?;
    }
    wait_for("the far client to be denied", IN_FORCE, || {
        Ok(
            (ask(cluster.lab.far_client(), Kind::Http, direct[0], 8080, 2)?.served() == 0)
                .then_some(()),
        )
    })?;
    for OpenConnection {
        what,
        from,
        session,
    } in &mut open
    {
        ensure!(
            session.ask().is_ok() == (*from != From::Far),
            "{what}, from where only the visitor is allowed"
        );
    }
    Ok(())
}

/// Destination NAT for the Service's addresses and its nodePort, and no program of ours.
fn translate_as_others_do(cluster: &Cluster, node: &Node) -> Result<()> {
    let pod = cluster.lab.pod("web-1")?.addresses().both();
    let mut rules = String::new();
    for (ip, to) in cluster.cluster_ips("web")?.into_iter().zip(pod) {
        let (family, end) = if to.is_ipv4() {
            ("ip", format!("{to}:8080"))
        } else {
            ("ip6", format!("[{to}]:8080"))
        };
        rules += &format!(
            "table {family} others {{\n chain pre {{\n  type nat hook prerouting priority dstnat;\n"
        );
        rules += &format!(
            "  {family} daddr {ip} tcp dport 80 dnat to {end}\n  tcp dport {WEB} dnat to {end}\n }}\n}}\n"
        );
    }
    let file = cluster
        .lab
        .directory()
        .join(format!("{}-others.nft", node.name()));
    std::fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
    node.ns()
        .output(Command::new("nft").arg("-f").arg(&file))
        .map(drop)
}

fn connections(cluster: &Cluster) -> Result<Vec<OpenConnection>> {
    let lab = &cluster.lab;
    let mut opened = Vec::new();
    let mut hold = |what: &str, from: From, ns: &Namespace, to: SocketAddr| -> Result<()> {
        let what = format!("{what} to {to}");
        let open = || {
            let mut session = Session::open(to)?;
            session.ask()?;
            Ok(session)
        };
        let session = ns.run(open).with_context(|| what.clone())?;
        opened.push(OpenConnection {
            what,
            from,
            session,
        });
        Ok(())
    };
    let node1 = lab.node("node1")?;
    let web1 = lab.pod("web-1")?.addresses().both();
    for (index, ip) in cluster.cluster_ips("web")?.into_iter().enumerate() {
        hold(
            "the visitor by the cluster IP",
            From::Visitor,
            lab.pod("visitor")?.ns(),
            SocketAddr::new(ip, 80),
        )?;
        let node = node1.addresses().both()[index];
        hold(
            "the far client by the nodePort",
            From::Far,
            lab.far_client(),
            SocketAddr::new(node, WEB),
        )?;
        hold(
            "the far client",
            From::Far,
            lab.far_client(),
            SocketAddr::new(web1[index], 8080),
        )?;
        hold(
            "the visitor",
            From::Visitor,
            lab.pod("visitor")?.ns(),
            SocketAddr::new(web1[index], 8080),
        )?;
        hold(
            "the pod's own node",
            From::Node,
            node1.ns(),
            SocketAddr::new(web1[index], 8080),
        )?;
    }
    Ok(opened)
}

fn visitor() -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "visitor" } } })
}

fn far() -> Value {
    json!({ "ipBlock": { "cidr": format!("{}/32", FAR_CLIENT.v4) } })
}

/// Returns policies of web pods that only these may ask and that may ask nobody, and of a visitor
/// that may ask them and that nobody may ask.
fn policies(from: &[Value]) -> [Value; 2] {
    let six = json!({ "ipBlock": { "cidr": format!("{}/128", FAR_CLIENT.v6) } });
    let six = from
        .iter()
        .any(|peer| peer.get("ipBlock").is_some())
        .then_some(six);
    let from: Vec<_> = from.iter().cloned().chain(six).collect();
    let policy = |app: &str, ingress: Value, egress: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": app, "namespace": "default" },
            "spec": {
                "podSelector": { "matchLabels": { "app": app } },
                "policyTypes": ["Ingress", "Egress"],
                "ingress": ingress,
                "egress": egress,
            },
        })
    };
    let web = json!([{ "podSelector": { "matchLabels": { "app": "web" } } }]);
    [
        policy("web", json!([{ "from": from }]), json!([])),
        policy(
            "visitor",
            json!([]),
            json!([{ "to": web, "ports": [{ "port": 8080 }] }]),
        ),
    ]
}

/// `portway explain` on a node with an agent also reads the agent's tables, and reports where they
/// lag behind.
#[test]
fn explain_asks_the_tables_of_the_agent_as_well() -> Result<()> {
    let mut cluster = Cluster::start(Wiring::Bridge, Join::Routes)?;
    for object in policies(&[visitor()]) {
        cluster.plane.client().apply(&object)?;
    }
    let node1 = cluster.lab.node("node1")?;
    for ip in cluster.lab.pod("web-1")?.addresses().both() {
        wait_for("policies to be in force", IN_FORCE, || {
            Ok(
                (ask(cluster.lab.near_client(), Kind::Http, ip, 8080, 2)?.served() == 0)
                    .then_some(()),
            )
        })?;
    }
    let allowed = explain(&cluster, node1, "default/visitor")?;
    ensure!(
        allowed.contains("default/web-1 ") && allowed.contains("is allowed."),
        "{allowed}"
    );
    ensure!(
        allowed.contains("Tables: Ingress in the kernel of this node gives the same verdict"),
        "{allowed}"
    );
    let denied = explain(&cluster, node1, "203.0.113.7")?;
    ensure!(
        denied.contains("is DENIED")
            && denied.contains("Tables: Ingress in the kernel of this node gives the same verdict"),
        "{denied}"
    );
    let elsewhere = explain(&cluster, cluster.lab.node("node3")?, "default/visitor")?;
    ensure!(
        elsewhere.contains("Tables: neither end is a pod of this node"),
        "{elsewhere}"
    );
    cluster.agents.remove(0).kill();
    cluster
        .plane
        .client()
        .delete(&ObjectRef::of(&policies(&[])[0])?)?;
    let stale = explain(&cluster, cluster.lab.node("node1")?, "203.0.113.7")?;
    ensure!(
        stale.contains("is allowed.")
            && stale.contains("the tables of this node deny this ingress"),
        "{stale}"
    );
    Ok(())
}

fn explain(cluster: &Cluster, node: &Node, from: &str) -> Result<String> {
    let xtask::lab::agent::Source::Kubeconfig(kubeconfig) = &cluster.spec.source else {
        anyhow::bail!("no API server")
    };
    let mut command = Command::new(&cluster.spec.portway);
    command
        .arg("explain")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--state-dir")
        .arg(node.state_dir());
    command.args([from, "default/web-1:8080"]);
    // Its status says whether the connection is denied.
    node.ns().run(|| {
        Ok(
            String::from_utf8_lossy(&command.output().context("run portway explain")?.stdout)
                .into_owned(),
        )
    })
}
