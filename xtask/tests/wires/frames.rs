//! Frames on the wire, judged by tcpdump, from senders that leave checksums and segmentation to
//! devices and from senders that do not.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::util::KernelVersion;
use serde_json::{Value, json};
use xtask::lab::agent::{Agent, AgentSpec, Source};
use xtask::lab::capture::{Capture, Direction, Judgement};
use xtask::lab::controlplane::wait_for;
use xtask::lab::host::Tools;
use xtask::lab::netns::Namespace;
use xtask::lab::node::Node;
use xtask::lab::probe::{self, Answer, Kind, Session};
use xtask::lab::topology::{Join, PodSpec, Serves, Topology, Uplink, Wiring};
use xtask::lab::wire::switch_port;
use xtask::lab::{Lab, objects};

/// Arguments of agents that serve processes of their node by packets.
pub const BY_PACKETS: &[&str] = &["--cgroup", "off"];
/// nodePorts of the web pods' HTTP, UDP echo and TCP echo, of a port that nobody listens on, and of
/// a Service without pods.
const HTTP: u16 = 30080;
const UDP: u16 = 30053;
const ECHO: u16 = 30007;
const NOBODY: u16 = 30054;
const EMPTY: u16 = 30055;
/// The cluster IPs of the web pods.
const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// From here on a veth merges what it receives.
const VETH_MERGES: KernelVersion = KernelVersion::new(5, 13, 0);
/// Size of a transfer, in bytes.
const BODY: usize = 400_000;
/// Time limit for a change to be in force, also on an emulated machine.
const IN_FORCE: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that crosses the wires of a lab of this kind has right checksums, and arrives; the
/// agents get `arguments` besides the usual ones.
pub fn are_right(uplink: Uplink, wiring: Wiring, mtu: u32, arguments: &[&str]) -> Result<()> {
    let lab = Lab::start(
        topology(uplink, wiring, mtu),
        Tools::next_to(env!("CARGO_BIN_EXE_xtask")),
    )?;
    let manifests = lab.directory().join("manifests");
    fs::create_dir(&manifests).context("make a directory for manifests")?;
    let played = lab
        .nodes()
        .iter()
        .map(objects::node)
        .chain(lab.pods().map(|(node, pod)| objects::pod(node, pod)));
    let all: Vec<Value> = played.chain(services()).collect();
    fs::write(manifests.join("cluster.yaml"), objects::yaml(&all)?).context("write manifests")?;
    let spec = AgentSpec::new(lab.tools(), Source::Manifests(manifests), lab.directory())
        .finding_devices()
        .with(arguments);
    let agents = lab
        .nodes()
        .iter()
        .map(|node| spec.start_unready(node))
        .collect::<Result<Vec<_>>>()?;
    served(&lab, arguments).with_context(|| {
        agents
            .iter()
            .map(Agent::log_tail)
            .collect::<Vec<_>>()
            .join("\n---\n")
    })?;
    // What a node or the router sends has its checksums and its segments made there, from what the
    // programs left of them.
    let wires = lab.nodes().iter().map(Node::ns).chain([lab.router()]);
    wires
        .clone()
        .try_for_each(|ns| ns.switch_checksum_offload_off("eth0"))?;
    lab.router().switch_checksum_offload_off("eth1")?;
    if uplink == Uplink::Bond {
        lab.nodes()
            .iter()
            .try_for_each(|node| node.ns().switch_checksum_offload_off("eth1"))?;
    }
    // Received segments are merged again before the programs see them; veth does so with what was
    // sent in segments only.
    (2..2 + lab.nodes().len())
        .map(switch_port)
        .try_for_each(|port| lab.lan().switch_checksum_offload_off(&port))?;
    lab.nodes()
        .iter()
        .try_for_each(|node| node.ns().merge_received("eth0", true))?;

    let web1 = lab.pod("web-1")?.ns();
    let left_to_devices = Capture::start(web1, "eth0", Direction::Out, lab.directory())?;
    let merged = Capture::start(lab.nodes()[0].ns(), "eth0", Direction::In, lab.directory())?;
    captured(&lab, mtu, arguments).context("senders leave checksums to devices")?;
    let left_to_devices = left_to_devices.judge()?;
    ensure!(
        !left_to_devices.wrong.is_empty(),
        "tcpdump finds no unfinished checksum: {left_to_devices:?}"
    );
    let merged = merged.judge()?.longest;
    ensure!(
        KernelVersion::current()? < VETH_MERGES || merged > mtu as usize,
        "no packet of more than one segment came in: {merged}"
    );

    let senders = lab
        .pods()
        .filter(|(_, pod)| pod.device().is_some())
        .map(|(_, pod)| pod.ns())
        .chain([lab.far_client()]);
    senders
        .into_iter()
        .try_for_each(|ns| ns.switch_checksum_offload_off("eth0"))?;
    // What was merged has no checksum of its own.
    lab.nodes()
        .iter()
        .try_for_each(|node| node.ns().merge_received("eth0", false))?;
    let pod = Capture::start(web1, "eth0", Direction::In, lab.directory())?;
    let quoted = captured(&lab, mtu, arguments).context("senders make their checksums")?;
    ensure!(
        quoted.is_empty(),
        "errors quote what nobody sent: {quoted:#?}"
    );
    let at_pod = pod.judge()?;
    // What a process sends to a pod of its node crosses no wire, and nobody finishes its checksum.
    if arguments != BY_PACKETS {
        all_right("web-1", &at_pod, &["tcp", "udp"])?;
    }
    drop::<Vec<Agent>>(agents);
    Ok(())
}

/// Sends all kinds of traffic and judges the captures at the far client and between the nodes;
/// returns the errors with a wrong quotation.
fn captured(lab: &Lab, mtu: u32, arguments: &[&str]) -> Result<Vec<String>> {
    let client = Capture::start(lab.far_client(), "eth0", Direction::In, lab.directory())?;
    let between = Capture::start(lab.lan(), "any", Direction::In, lab.directory())?;
    for family in [0, 1] {
        for node in lab.nodes() {
            let ip = node.addresses().both()[family];
            lab.far_client()
                .run(|| from_outside(ip, mtu as usize))
                .with_context(|| format!("ask {ip}"))?;
        }
        let vip: IpAddr = CLUSTER_IPS[family].parse()?;
        lab.pod("visitor")?
            .ns()
            .run(|| exchanges(vip, [80, 53, 7], mtu as usize))
            .with_context(|| format!("ask {vip}"))?;
        if arguments == BY_PACKETS {
            lab.nodes()
                .iter()
                .try_for_each(|node| from_processes(node, vip, mtu as usize))?;
        }
    }
    let (client, between) = (client.judge()?, between.judge()?);
    println!(
        "far client: {:?}, longest {}; between nodes: {:?}, longest {}, {} encapsulated",
        client.right, client.longest, between.right, between.longest, between.encapsulated
    );
    let expected = arguments.contains(&"dsr");
    ensure!(
        (between.encapsulated > 100) == expected,
        "{} packets between nodes carry others",
        between.encapsulated
    );
    all_right("the far client", &client, &["tcp", "udp", "icmp", "icmp6"])?;
    all_right(
        "the nodes' switch",
        &between,
        &["tcp", "udp", "icmp", "icmp6"],
    )?;
    let longest = client.longest.max(between.longest);
    ensure!(
        longest <= mtu as usize && longest > mtu as usize - 100,
        "the longest packet has {longest} bytes, of {mtu}"
    );
    Ok([client.quoted, between.quoted].concat())
}

fn all_right(side: &str, judgement: &Judgement, kinds: &[&str]) -> Result<()> {
    ensure!(
        judgement.wrong.is_empty(),
        "{side}: {} wrong: {:#?}",
        judgement.wrong.len(),
        &judgement.wrong[..1]
    );
    for kind in kinds {
        ensure!(
            judgement.right.get(kind).is_some_and(|count| *count >= 6),
            "{side}: no {kind}: {:?}",
            judgement.right
        );
    }
    Ok(())
}

/// V21: by a cluster IP, the node's own address and loopback.
fn from_processes(node: &Node, vip: IpAddr, mtu: usize) -> Result<()> {
    let own = node
        .addresses()
        .both()
        .into_iter()
        .find(|ip| ip.is_ipv4() == vip.is_ipv4())
        .context("find the node's address")?;
    let loopback: IpAddr = if vip.is_ipv4() {
        [127, 0, 0, 1].into()
    } else {
        [0, 0, 0, 0, 0, 0, 0, 1].into()
    };
    for (ip, ports) in [
        (vip, [80, 53, 7]),
        (own, [HTTP, UDP, ECHO]),
        (loopback, [HTTP, UDP, ECHO]),
    ] {
        node.ns()
            .run(|| exchanges(ip, ports, mtu))
            .with_context(|| format!("a process of {} asks {ip}", node.name()))?;
    }
    for ip in [own, loopback] {
        let answer = node
            .ns()
            .run(|| Ok(probe::ask(Kind::Udp, SocketAddr::new(ip, EMPTY))))?;
        ensure!(
            answer == Answer::Refused,
            "a process of {} asks {ip} port {EMPTY}: {answer}",
            node.name()
        );
    }
    Ok(())
}

fn from_outside(ip: IpAddr, mtu: usize) -> Result<()> {
    exchanges(ip, [HTTP, UDP, ECHO], mtu)?;
    for _ in 0..3 {
        for port in [NOBODY, EMPTY] {
            let answer = probe::ask(Kind::Udp, SocketAddr::new(ip, port));
            ensure!(answer == Answer::Refused, "UDP port {port}: {answer}");
        }
        ensure!(
            probe::is_refused(SocketAddr::new(ip, EMPTY), PATIENCE),
            "TCP port {EMPTY} is not refused"
        );
    }
    Ok(())
}

/// Downloads, exchanges datagrams of all sizes and uploads, so often that pods of the asked node
/// and of others serve.
fn exchanges(ip: IpAddr, [http, udp, echo]: [u16; 3], mtu: usize) -> Result<()> {
    for _ in 0..4 {
        let body = Session::open((ip, http).into())?
            .patient(PATIENCE)?
            .get(&format!("/bytes/{BODY}"))
            .context("download")?;
        ensure!(body.len() == BODY, "{} bytes instead of {BODY}", body.len());
        up_and_down((ip, echo).into()).context("upload")?;
        let any: IpAddr = if ip.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0_u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, udp))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // The echo begins with the server's name.
        for length in [1, 2, 3, 500, 1201, mtu - 200] {
            let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            socket.send(&sent)?;
            let mut buffer = [0; 16384];
            let back = socket
                .recv(&mut buffer)
                .with_context(|| format!("hear {length} bytes back"))?;
            ensure!(
                buffer[..back].ends_with(&sent),
                "{length} bytes came back as others"
            );
        }
    }
    Ok(())
}

/// Has as much echoed as a transfer takes.
fn up_and_down(addr: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut who = [0];
    while who != *b"\n" {
        stream.read_exact(&mut who).context("hear who it is")?;
    }
    let mut writer = stream.try_clone()?;
    let sent: Vec<u8> = (0..BODY).map(|at| (at % 251) as u8).collect();
    let expected = sent.clone();
    let sending = thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; BODY];
    stream.read_exact(&mut back).context("hear it back")?;
    sending
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    ensure!(back == expected, "what came back differs");
    Ok(())
}

/// Waits until every node serves all pods by both families.
fn served(lab: &Lab, arguments: &[&str]) -> Result<()> {
    for node in lab.nodes() {
        for ip in node.addresses().both() {
            let by_packets = (arguments == BY_PACKETS).then_some(node.ns());
            for from in [Some(lab.far_client()), by_packets].into_iter().flatten() {
                let served = |from: &Namespace| {
                    from.run(|| Ok(probe::survey(Kind::Http, (ip, HTTP).into(), 20)))
                };
                wait_for("all pods", IN_FORCE, || {
                    Ok((served(from)?.pods() == ["web-1", "web-2"]).then_some(()))
                })
                .with_context(|| format!("by {ip}, asked by {}", from.name()))?;
            }
        }
    }
    Ok(())
}

fn topology(uplink: Uplink, wiring: Wiring, mtu: u32) -> Topology {
    let web = |name: &str| {
        let pod = PodSpec::new(name).label("app", "web");
        pod.serving_as("http", 8081, Serves::Http)
            .serving_as("names", 5353, Serves::UdpEcho)
            .serving_as("echo", 7, Serves::TcpEcho)
    };
    let topology = Topology::new(wiring, Join::Routes).uplink(uplink, mtu);
    topology
        .node("node1", vec![web("web-1")])
        .node("node2", vec![web("web-2"), PodSpec::new("visitor")])
}

fn services() -> Vec<Value> {
    let service = |name: &str, selector: &str, ips: Option<[&str; 2]>, ports: Value| {
        let ips = ips.unwrap_or(["10.96.0.11", "fd00:10:96::11"]);
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "type": "NodePort",
                "ipFamilyPolicy": "RequireDualStack",
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "selector": { "app": selector },
                "ports": ports,
            },
        })
    };
    let web = json!([
        { "name": "http", "port": 80, "targetPort": "http", "nodePort": HTTP },
        { "name": "names", "protocol": "UDP", "port": 53, "targetPort": "names", "nodePort": UDP },
        { "name": "echo", "port": 7, "targetPort": "echo", "nodePort": ECHO },
        { "name": "nobody", "protocol": "UDP", "port": 9, "targetPort": 9, "nodePort": NOBODY },
    ]);
    let empty = json!([
        { "name": "tcp", "port": 80, "nodePort": EMPTY },
        { "name": "udp", "protocol": "UDP", "port": 80, "nodePort": EMPTY },
    ]);
    vec![
        service("web", "web", Some(CLUSTER_IPS), web),
        service("empty", "nobody", None, empty),
    ]
}
