//! ICMP errors about translated connections reach the sockets that they are for: whole transfers
//! through a hop that takes less than both ends, datagrams that learn of it, and ports that nobody
//! listens on.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::controlplane::wait_for;
use xtask::lab::netns::Namespace;
use xtask::lab::probe::{Kind, PATIENCE, Session};
use xtask::lab::topology::{FAR_CLIENT, Join, Wiring};

use crate::cluster::{Cluster, HOST, IN_FORCE, WEB, WEB_ECHO, WEB_UDP, ask};

/// MTU of the hop.
const NARROW: usize = 1280;
/// Size of a transfer, in bytes.
const BODY: usize = 10_000_000;
/// A datagram as QUIC sends it while it looks for the path's MTU, and one as it may always be.
const QUIC: usize = 1350;
const SMALL: usize = 1200;
/// A datagram of several fragments.
const LARGE: usize = 4000;
/// A backend behind the hop, no pod, and its nodePort; it echoes by both protocols.
const OUTSIDE: u16 = 7007;
const OUTSIDE_NODE_PORT: u16 = 30070;
/// nodePorts that lead to ports that nobody listens on: of pods, and of a process of a node.
const NOBODY: u16 = 30054;
const NOBODY_ON_HOST: u16 = 30055;
/// Longest pause within a transfer.
const STANDSTILL: Duration = Duration::from_secs(5);
/// Direct server return.
const DSR: &str = "dsr";

#[test]
fn through_a_narrow_hop_over_point_to_point_links() -> Result<()> {
    narrow(Wiring::PointToPoint, "masquerade")
}

#[test]
fn through_a_narrow_hop_over_a_bridge() -> Result<()> {
    narrow(Wiring::Bridge, "masquerade")
}

#[test]
fn through_a_narrow_hop_with_direct_server_return() -> Result<()> {
    narrow(Wiring::Bridge, DSR)
}

fn narrow(wiring: Wiring, forwarding: &str) -> Result<()> {
    let cluster = Cluster::start_with(wiring, Join::Routes, &["--forwarding", forwarding], |_| {
        Ok(())
    })?;
    let echo = |family: usize| {
        let addr = SocketAddr::new(FAR_CLIENT.both()[family], OUTSIDE);
        _ = cluster
            .lab
            .far_client()
            .start(move || serve(TcpListener::bind(addr)?));
        _ = cluster
            .lab
            .far_client()
            .start(move || echo_datagrams(&UdpSocket::bind(addr)?));
    };
    [0, 1].into_iter().for_each(echo);
    for object in objects() {
        cluster.plane.client().apply(&object)?;
    }
    // A pod sends ICMP errors to one address once a second and six times at once (icmp_ratelimit): that of the
    // client where all see him, else those of the nodes.
    nobody_listens(&cluster, if forwarding == DSR { 2 } else { 6 })?;
    large_datagrams(&cluster, forwarding)?;
    for (index, ip) in FAR_CLIENT.both().into_iter().enumerate() {
        let len = if ip.is_ipv4() { 32 } else { 128 };
        cluster
            .lab
            .router()
            .ip(&format!(
                "route add {ip}/{len} dev eth1 mtu lock {NARROW}\n"
            ))
            .context("narrow the way")?;
        outward(&cluster, index).with_context(|| format!("to {ip}"))?;
        inward(&cluster, index).with_context(|| format!("from {ip}"))?;
    }
    Ok(())
}

/// Expects a refusal at a closed port, from every client, whatever is in between.
fn nobody_listens(cluster: &Cluster, times: usize) -> Result<()> {
    let mut ways = Vec::new();
    for node in cluster.lab.nodes() {
        for ip in node.addresses().both() {
            ways.extend(
                [NOBODY, NOBODY_ON_HOST]
                    .map(|port| ("the far client", cluster.lab.far_client(), ip, port)),
            );
        }
    }
    for service in ["nobody", "nobody-on-host"] {
        let visitor = cluster.lab.pod("visitor")?.ns();
        ways.extend(
            cluster
                .cluster_ips(service)?
                .into_iter()
                .map(|ip| ("the visitor", visitor, ip, 53)),
        );
    }
    for (name, from, ip, port) in ways {
        wait_for("port unreachable", IN_FORCE, || {
            Ok((ask(from, Kind::Udp, ip, port, times)?.refused == times).then_some(()))
        })
        .with_context(|| format!("{name} asks {ip} port {port}"))?;
    }
    Ok(())
}

/// Datagrams of several fragments arrive whole, and so do their answers: at pods of the asked node
/// and of others, and masqueraded at a backend that is no pod. Where encapsulation narrows the way,
/// a sender with too large fragments gets one error, and cuts them smaller.
fn large_datagrams(cluster: &Cluster, forwarding: &str) -> Result<()> {
    let lab = &cluster.lab;
    let (far, near, visitor) = (
        lab.far_client(),
        lab.near_client(),
        lab.pod("visitor")?.ns(),
    );
    let mut ways = Vec::new();
    for node in lab.nodes() {
        for ip in node.addresses().both() {
            ways.extend([
                ("the far client", far, ip, WEB_UDP),
                ("the near client", near, ip, WEB_UDP),
            ]);
            ways.push(("the near client", near, ip, OUTSIDE_NODE_PORT));
        }
    }
    ways.extend(
        cluster
            .cluster_ips("web")?
            .into_iter()
            .map(|ip| ("the visitor", visitor, ip, 53)),
    );
    ways.extend(
        cluster
            .cluster_ips("outside")?
            .into_iter()
            .map(|ip| ("the visitor", visitor, ip, 7)),
    );
    for (name, from, ip, port) in ways {
        let to = SocketAddr::new(ip, port);
        let whole = || -> Result<()> {
            let socket = datagrams(to)?;
            socket.send(&[b'x'; LARGE])?;
            // The lab's servers say besides who they are.
            let mut buffer = [0; 2 * LARGE];
            let mut heard = socket.recv(&mut buffer);
            if forwarding == DSR
                && heard
                    .as_ref()
                    .is_err_and(|error| error.raw_os_error() == Some(nix::libc::EMSGSIZE))
            {
                socket.send(&[b'x'; LARGE])?;
                heard = socket.recv(&mut buffer);
            }
            let back = heard.context("hear back")?;
            let (sent, _) = buffer[..back].iter().fold((0, 0), longest_run);
            ensure!(sent == LARGE, "{sent} bytes of it came back in {back}");
            Ok(())
        };
        let mut last = None;
        let first = wait_for("the first answer", IN_FORCE, || {
            last = from.run(whole).err();
            Ok(last.is_none().then_some(()))
        });
        first.with_context(|| format!("{name} asks {to}: {last:?}"))?;
        (0..12)
            .try_for_each(|_| from.run(whole))
            .with_context(|| format!("{name} asks {to}"))?;
    }
    Ok(())
}

/// The longest run of what is sent, and the one that a byte is in.
fn longest_run((longest, run): (usize, usize), byte: &u8) -> (usize, usize) {
    let run = if *byte == b'x' { run + 1 } else { 0 };
    (longest.max(run), run)
}

/// The client is near, and the backend behind the hop: by the cluster IP from a pod, and
/// masqueraded by a nodePort.
fn outward(cluster: &Cluster, index: usize) -> Result<()> {
    let visitor = ("the visitor", cluster.lab.pod("visitor")?.ns());
    let near = ("the near client", cluster.lab.near_client());
    let cluster_ip = SocketAddr::new(cluster.cluster_ips("outside")?[index], 7);
    let node_port = SocketAddr::new(
        cluster.lab.node("node1")?.addresses().both()[index],
        OUTSIDE_NODE_PORT,
    );
    for ((name, from), to) in [(visitor, cluster_ip), (near, node_port)] {
        wait_for("the backend", IN_FORCE, || {
            from.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE).ok()))
        })?;
        from.run(|| there_and_back(to))
            .with_context(|| format!("{name} by {to}, TCP"))?;
        // The host's own route has learnt of it by TCP already.
        forget(from)?;
        from.run(|| learns(to))
            .with_context(|| format!("{name} by {to}, UDP"))?;
        ensure!(
            mtu(from, to.ip())? == Some(NARROW),
            "{name} has not learnt of the way to {to}"
        );
    }
    Ok(())
}

/// The client is behind the hop, and the backends are pods of this node and of others, and a
/// process of a node.
fn inward(cluster: &Cluster, index: usize) -> Result<()> {
    let far = cluster.lab.far_client();
    for node in cluster.lab.nodes() {
        let ip = node.addresses().both()[index];
        let by = |port| SocketAddr::new(ip, port);
        far.run(|| {
            let mut pods = std::collections::BTreeSet::new();
            for _ in 0..30 {
                let mut session = Session::open(by(WEB))?;
                if pods.insert(session.ask()?.pod) {
                    let body = session
                        .get(&format!("/bytes/{BODY}"))
                        .with_context(|| format!("fetch from {pods:?}"))?;
                    ensure!(body.len() == BODY, "{} bytes", body.len());
                }
            }
            ensure!(pods.len() == 3, "only {pods:?}");
            ensure!(
                Session::open(by(HOST))?
                    .get(&format!("/bytes/{BODY}"))
                    .context("fetch from a process")?
                    .len()
                    == BODY
            );
            there_and_back(by(WEB_ECHO))
        })
        .with_context(|| format!("by {ip}"))?;
    }
    // What a datagram's sender learns is in its pod's routes.
    for (pod, node) in [("web-1", "node1"), ("web-3", "node2")] {
        let ns = cluster.lab.pod(pod)?.ns();
        forget(ns)?;
        let to = SocketAddr::new(cluster.lab.node(node)?.addresses().both()[index], WEB_UDP);
        wait_for("the pod to learn of the way", IN_FORCE, || {
            far.run(|| {
                let socket = datagrams(to)?;
                socket.send(&[b'x'; QUIC])?;
                _ = socket.recv(&mut [0; QUIC]);
                Ok(())
            })?;
            Ok((mtu(ns, FAR_CLIENT.both()[index])? == Some(NARROW)).then_some(()))
        })
        .with_context(|| format!("{pod}, asked by {to}"))?;
    }
    Ok(())
}

/// A host forgets what it has learnt of paths.
fn forget(ns: &Namespace) -> Result<()> {
    ["-4", "-6"].into_iter().try_for_each(|family| {
        ns.output(Command::new("ip").args([family, "route", "flush", "cache"]))
            .map(drop)
    })
}

/// Returns the MTU that a host's route to an address has learnt.
fn mtu(ns: &Namespace, to: IpAddr) -> Result<Option<usize>> {
    let route = ns.output(Command::new("ip").args(["route", "get", &to.to_string()]))?;
    let mut words = route
        .split_whitespace()
        .skip_while(|word| *word != "mtu")
        .skip(1);
    words
        .next()
        .map(|word| word.parse().context("read an MTU"))
        .transpose()
}

/// Sends [`BODY`] bytes to who sends them back.
fn there_and_back(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(STANDSTILL))?;
    stream.set_write_timeout(Some(STANDSTILL))?;
    let mut writer = stream.try_clone()?;
    let written = std::thread::spawn(move || -> std::io::Result<()> {
        writer.write_all(&vec![b'x'; BODY])?;
        writer.shutdown(Shutdown::Write)
    });
    let (mut back, mut buffer) = (0, vec![0; 65536]);
    while back < BODY {
        // Echo servers of the lab say who they are first.
        let length = stream
            .read(&mut buffer)
            .with_context(|| format!("hear back, after {back} bytes"))?;
        ensure!(length > 0, "it ended after {back} bytes");
        back += buffer[..length]
            .iter()
            .filter(|byte| **byte == b'x')
            .count();
    }
    written.join().expect("it does not panic").context("send")
}

/// Expects an error for a datagram that is too large, and an answer for one that fits.
fn learns(to: SocketAddr) -> Result<()> {
    let socket = datagrams(to)?;
    socket
        .send(&[b'x'; QUIC])
        .context("send a large datagram")?;
    // The error comes back by the socket.
    let told = socket
        .recv(&mut [0; QUIC])
        .map_err(|error| error.raw_os_error());
    ensure!(
        told == Err(Some(nix::libc::EMSGSIZE)),
        "the large datagram came to {told:?}"
    );
    socket
        .send(&[b'x'; SMALL])
        .context("send a small datagram")?;
    let back = socket
        .recv(&mut [0; QUIC])
        .context("hear of a small datagram")?;
    ensure!(back == SMALL, "{back} bytes came back");
    Ok(())
}

fn datagrams(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn serve(listener: TcpListener) -> Result<()> {
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 2 * LARGE];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => _ = socket.send_to(&buffer[..length], from)?,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("hear a datagram"),
        }
    }
}

/// Services of a backend outside, and of ports that nobody listens on.
fn objects() -> Vec<Value> {
    let service = |name: &str, selector: Value, ports: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": selector, "ports": ports },
        })
    };
    let both = json!([
        { "name": "tcp", "port": 7, "targetPort": OUTSIDE, "nodePort": OUTSIDE_NODE_PORT },
        { "name": "udp", "protocol": "UDP", "port": 7, "targetPort": OUTSIDE, "nodePort": OUTSIDE_NODE_PORT },
    ]);
    let udp = |node_port: u16| json!([{ "protocol": "UDP", "port": 53, "targetPort": 5354, "nodePort": node_port }]);
    let slice = |ip: IpAddr| {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("outside-{}", family.to_lowercase()),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": "outside" },
            },
            "addressType": family,
            "endpoints": [{ "addresses": [ip.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "tcp", "port": OUTSIDE }, { "name": "udp", "protocol": "UDP", "port": OUTSIDE }],
        })
    };
    let mut objects = vec![
        service("outside", Value::Null, both),
        service("nobody", json!({ "app": "web" }), udp(NOBODY)),
        service(
            "nobody-on-host",
            json!({ "app": "host" }),
            udp(NOBODY_ON_HOST),
        ),
    ];
    objects.extend(FAR_CLIENT.both().map(slice));
    objects
}
