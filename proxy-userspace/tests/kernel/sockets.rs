//! Processes and their sockets in a cgroup of the test's own: the data plane attached there, real
//! connections, and the peers that they see.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::util::KernelVersion;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use portway::contents::{Backends, Contents, Endpoint, Frontend, Target};
use portway::dataplane::{
    CgroupChoice, Dataplane, Options, StateDir, XdpChoice, socket_hooks, sockets_of, unload,
};
use portway::devices::Devices;
use portway::metrics::Metrics;
use portway::place::{Actual, place};
use portway::serving::Serving;
use portway::sockets::Sockets;
use proxy_common::net::{AddressFlags, Protocol};
use proxy_common::reason::{Counter, Reason};
use proxy_common::service::{Config, ServiceFlags};
use rtnetlink::{LinkUnspec, new_connection};

use crate::cgroup::Own;

mod clients;
mod node;

use clients::{ask_tcp, ask_udp, mapped, tcp, udp, udp_connected, udp_socket};
use node::{Node, apart, contents, frontends, serve, serving, sides, wire};

/// Time limit for answers on one machine.
const PATIENCE: Duration = Duration::from_secs(5);
const NODE_PORT: u16 = 30080;
/// The port of cluster IPs.
const PORT: u16 = 80;
/// The port of backends.
const TARGET: u16 = 8080;
/// First kernel with a cookie of the network namespace; on older ones only the initial namespace
/// can be served.
const NETNS_COOKIE: KernelVersion = KernelVersion::new(5, 14, 0);
/// First kernel on which programs can return "connection refused".
const SET_RETVAL: KernelVersion = KernelVersion::new(5, 18, 0);

#[test]
fn processes_reach_services_by_their_sockets() -> Result<()> {
    let own = Own::enter()?;
    let choice = CgroupChoice::At(own.path().to_owned());
    apart(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        runtime.block_on(wire())?;
        let mut node = Node::start(choice)?;
        if KernelVersion::current()? < NETNS_COOKIE {
            node.attach()?;
            let why = node
                .plane()?
                .sockets()
                .why_not()
                .unwrap_or_default()
                .to_owned();
            println!("not on this kernel: {why}");
            ensure!(why.contains("network namespaces"), "{why}");
            return Ok(());
        }
        sides()
            .iter()
            .flat_map(|side| side.backends)
            .try_for_each(serve)?;
        node.bring(&contents(2))?;
        node.attach()?;
        everybody_is_served(&node)?;
        listeners_come_first()?;
        refused(&node)?;
        others_are_left_alone()?;
        restarts(&mut node)?;
        gone_backends(&mut node)?;
        node.plane = None;
        everybody_is_served_by_one()?;
        runtime.block_on(unload(&node.options.state_dir))?;
        for side in sides() {
            ensure!(
                tcp(SocketAddr::new(side.loopback, NODE_PORT)).is_err(),
                "unloaded"
            );
        }
        Ok(())
    })?;
    drop(own);
    Ok(())
}

/// V21: cluster IP, nodePort and loopback; IPv4, IPv6, and IPv4 on IPv6 sockets; every backend is
/// chosen.
fn everybody_is_served(node: &Node) -> Result<()> {
    let before = node.counted(Counter::SocketsDirected.index())?;
    let mut asked = 0;
    for frontend in sides().iter().flat_map(frontends) {
        for addr in BTreeSet::from([frontend, mapped(frontend)]) {
            for (kind, ask) in [
                ("tcp", tcp as fn(_) -> _),
                ("udp", udp),
                ("connected udp", udp_connected),
            ] {
                let mut seen = BTreeSet::new();
                for _ in 0..24 {
                    seen.insert(ask(addr).with_context(|| format!("{kind} {addr}"))?);
                    asked += 1;
                }
                ensure!(seen == BTreeSet::from([1, 2]), "{kind} {addr}: {seen:?}");
            }
        }
    }
    ensure!(
        node.counted(Counter::SocketsDirected.index())? - before == asked,
        "each is counted once"
    );
    Ok(())
}

/// V21: a listener of the host is never hidden.
fn listeners_come_first() -> Result<()> {
    for side in sides() {
        let addr = SocketAddr::new(side.loopback, NODE_PORT);
        let listener = TcpListener::bind(addr)?;
        let client = TcpStream::connect_timeout(&addr, PATIENCE)?;
        ensure!(listener.accept()?.1 == client.local_addr()?, "{addr}");
        let bound = UdpSocket::bind((side.unspecified, NODE_PORT))?;
        let client = udp_socket(addr)?;
        client.send_to(b"l", addr)?;
        bound.set_read_timeout(Some(PATIENCE))?;
        let (_, from) = bound.recv_from(&mut [0; 2])?;
        ensure!(from.port() == client.local_addr()?.port(), "{addr}");
    }
    Ok(())
}

/// Verdict table: refused at once, and counted by the reason.
fn refused(node: &Node) -> Result<()> {
    let kinds = if KernelVersion::current()? < SET_RETVAL {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::ConnectionRefused
    };
    for (ip, port, reason) in sides().iter().flat_map(|side| {
        [
            (side.vip, PORT + 1, Reason::UnknownPort),
            (side.empty, PORT, Reason::NoBackend),
        ]
    }) {
        let addr = SocketAddr::new(ip, port);
        let (before, begin) = (node.counted(reason.index())?, Instant::now());
        for addr in BTreeSet::from([addr, mapped(addr)]) {
            let said = [tcp(addr), udp(addr), udp_connected(addr)]
                .map(|said| said.expect_err("refused").kind());
            ensure!(said == [kinds; 3], "{addr}: {said:?}");
        }
        let asked = if ip.is_ipv4() { 6 } else { 3 };
        ensure!(
            node.counted(reason.index())? - before == asked,
            "{reason:?} is counted"
        );
        ensure!(begin.elapsed() < PATIENCE, "at once");
    }
    Ok(())
}

/// V21: a process of the same cgroup in another network namespace, which has the same addresses and
/// other servers.
fn others_are_left_alone() -> Result<()> {
    apart(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        runtime.block_on(wire())?;
        for side in sides() {
            let node_port = SocketAddr::new(side.node, NODE_PORT);
            let _listener = TcpListener::bind((side.backends[0], TARGET))?;
            let said = tcp(node_port).expect_err("nobody listens there").kind();
            ensure!(said == ErrorKind::ConnectionRefused, "{said:?}");
            let vip = tcp(SocketAddr::new(side.vip, PORT))
                .expect_err("there is no route")
                .kind();
            ensure!(
                matches!(
                    vip,
                    ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable
                ),
                "{vip:?}"
            );
        }
        Ok(())
    })
}

/// Attached programs outlive their agent, and the next agent's programs replace them in one step.
fn restarts(node: &mut Node) -> Result<()> {
    let dir = StateDir::at(&node.options.state_dir);
    let (before, cgroup) = (socket_hooks(&dir)?, sockets_of(&dir));
    ensure!(before.len() == 8, "{before:?}");
    ensure!(
        matches!(&node.options.cgroup, CgroupChoice::At(path) if cgroup.as_deref() == path.to_str()),
        "{cgroup:?}"
    );
    let alive = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let stop = alive.clone();
    let asking = thread::spawn(move || {
        let mut asked = 0;
        while stop.load(std::sync::atomic::Ordering::Relaxed) {
            for frontend in sides().iter().flat_map(frontends) {
                udp(frontend)?;
                tcp(frontend)?;
                asked += 1;
            }
        }
        Ok::<_, std::io::Error>(asked)
    });
    node.restart()?;
    node.bring(&contents(2))?;
    node.attach()?;
    alive.store(false, std::sync::atomic::Ordering::Relaxed);
    let asked = asking
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))
        .context("ask during the restart")?;
    ensure!(asked > 0);
    let after = socket_hooks(&dir)?;
    ensure!(
        before
            .iter()
            .zip(&after)
            .all(|(a, b)| a.0 == b.0 && a.1 != b.1),
        "{before:?} {after:?}"
    );
    Ok(())
}

/// V14: the connected UDP socket of a removed backend is ended, other sockets and TCP are not; an
/// unconnected one gets another backend.
fn gone_backends(node: &mut Node) -> Result<()> {
    for side in sides() {
        let asked = SocketAddr::new(side.vip, PORT);
        let open = |wanted: u8| -> Result<(UdpSocket, UdpSocket)> {
            for _ in 0..64 {
                let (connected, free) = (udp_socket(asked)?, udp_socket(asked)?);
                connected.connect(asked)?;
                if ask_udp(&connected, None)? == wanted && ask_udp(&free, Some(asked))? == wanted {
                    return Ok((connected, free));
                }
            }
            bail!("backend {wanted} has no turn")
        };
        let (staying, leaving) = (open(1)?, open(2)?);
        let tcp_before = loop {
            let mut stream = TcpStream::connect_timeout(&asked, PATIENCE)?;
            if ask_tcp(&mut stream)? == 2 {
                break stream;
            }
        };
        node.bring(&contents(1))?;
        // The serving endpoints as sync computes them: only the first backend, under the id that
        // the flows have.
        let maps = node.plane()?.open_maps();
        let serving = serving(node);
        let mut sockets = Sockets::default();
        let ended = sockets.end(&mut maps?, &serving, &Metrics::default())?;
        if sockets.is_refused() {
            println!("this kernel does not end sockets, and says so");
        } else {
            ensure!(ended == 1, "{ended} sockets ended by {}", side.vip);
            let said = ask_udp(&leaving.0, None).expect_err("it is ended");
            println!("the socket of a gone backend says: {said:#}");
        }
        ensure!(ask_udp(&staying.0, None)? == 1 && ask_udp(&staying.1, Some(asked))? == 1);
        ensure!(
            ask_udp(&leaving.1, Some(asked))? == 1,
            "an unconnected socket goes elsewhere"
        );
        let mut tcp_before = tcp_before;
        ensure!(ask_tcp(&mut tcp_before)? == 2, "TCP lives until it ends");
        node.bring(&contents(2))?;
    }
    node.bring(&contents(1))
}

/// The hooks go on without an agent.
fn everybody_is_served_by_one() -> Result<()> {
    for frontend in sides().iter().flat_map(frontends) {
        ensure!(tcp(frontend)? == 1 && udp(frontend)? == 1 && udp_connected(frontend)? == 1);
    }
    Ok(())
}
