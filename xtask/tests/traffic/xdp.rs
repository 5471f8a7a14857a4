//! XDP in the nodes' devices forwards what leaves a node again, in both directions, and leaves the
//! rest to tc.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use xtask::lab::netns::Namespace;
use xtask::lab::probe::{PATIENCE, Session};
use xtask::lab::topology::{Join, Wiring};

use crate::cluster::{Cluster, WEB, WEB_ECHO, WEB_UDP};
use crate::reach::everything_is_reached;

/// Established connections by way of a node without pods: every packet of both directions is XDP's.
fn only_xdp_forwards(cluster: &Cluster) -> Result<()> {
    for ip in cluster.lab.node("node3")?.addresses().both() {
        for client in [cluster.lab.near_client(), cluster.lab.far_client()] {
            requests(cluster, client, ip)?;
            bulk_to_the_pod(cluster, client, ip)?;
            datagrams(cluster, client, ip)?;
        }
    }
    Ok(())
}

/// Small requests, then what fills segments on the way to the client.
fn requests(cluster: &Cluster, client: &Namespace, ip: IpAddr) -> Result<()> {
    let mut session = client.run(|| Session::open(SocketAddr::new(ip, WEB)).context("connect"))?;
    session.ask().context("ask once")?;
    by_xdp(cluster, 200, || {
        (0..100)
            .try_for_each(|_| session.ask().map(drop))
            .context("ask")
    })?;
    by_xdp(cluster, 2000, || {
        let bytes = session.get("/bytes/3000000").context("fetch 3 MB")?;
        ensure!(
            bytes.len() == 3_000_000,
            "{} bytes instead of 3 MB",
            bytes.len()
        );
        Ok(())
    })
    .with_context(|| format!("{} asks {ip}", client.name()))
}

/// Transfers bulk data to the pod and back, in full segments.
fn bulk_to_the_pod(cluster: &Cluster, client: &Namespace, ip: IpAddr) -> Result<()> {
    let mut stream = client.run(|| {
        TcpStream::connect_timeout(&SocketAddr::new(ip, WEB_ECHO), PATIENCE).context("connect")
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    while read_byte(&mut stream)? != b'\n' {}
    let sent = pattern(2_000_000);
    by_xdp(cluster, 2700, || {
        let mut writer = stream.try_clone().context("share a connection")?;
        let mut echo = vec![0; sent.len()];
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| writer.write_all(&sent));
            stream.read_exact(&mut echo).context("read 2 MB")?;
            writing
                .join()
                .expect("writing does not panic")
                .context("write 2 MB")
        })?;
        ensure!(echo == sent, "what came back differs from what was sent");
        Ok(())
    })
    .with_context(|| format!("{} sends to {ip}", client.name()))
}

fn read_byte(stream: &mut TcpStream) -> Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte).context("read who answers")?;
    Ok(byte[0])
}

/// 2.4 MB in datagrams, one after the other, each way.
fn datagrams(cluster: &Cluster, client: &Namespace, ip: IpAddr) -> Result<()> {
    let any: IpAddr = if ip.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = client.run(|| UdpSocket::bind((any, 0)).context("bind"))?;
    socket.connect(SocketAddr::new(ip, WEB_UDP))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let sent = pattern(1200);
    let exchange = || {
        let mut buffer = [0; 2048];
        socket.send(&sent).context("send a datagram")?;
        let length = socket.recv(&mut buffer).context("receive its echo")?;
        ensure!(
            buffer[..length].ends_with(&sent),
            "what came back differs from what was sent"
        );
        Ok(())
    };
    exchange()?;
    by_xdp(cluster, 4000, || (0..2000).try_for_each(|_| exchange()))
        .with_context(|| format!("{} sends datagrams to {ip}", client.name()))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Does `work`, by which node3 forwards at least so many packets, all of them by XDP.
fn by_xdp(cluster: &Cluster, least: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let node = cluster.lab.node("node3")?;
    // At one moment: the connection before may still be closing.
    let counts = || cluster.events(node, ["forwarded", "forwarded_early"]);
    let before = counts()?;
    work()?;
    let after = counts()?;
    let [all, early] = [after[0] - before[0], after[1] - before[1]];
    ensure!(
        early >= least && early == all,
        "XDP forwarded {early} of {all} packets; at least {least} were to be, all by XDP"
    );
    Ok(())
}

#[test]
fn native_over_routes() -> Result<()> {
    xdp_forwards("native", Wiring::PointToPoint, Join::Routes)
}

#[test]
fn generic_over_routes() -> Result<()> {
    xdp_forwards("generic", Wiring::Bridge, Join::Routes)
}

fn xdp_forwards(mode: &str, wiring: Wiring, join: Join) -> Result<()> {
    let cluster = Cluster::start_with(wiring, join, &["--xdp", mode], |lab| lab.let_xdp_send())?;
    only_xdp_forwards(&cluster)?;
    everything_is_reached(&cluster)
}

/// A tunnel has no XDP program, and XDP cannot send into it: tc does, and nothing is lost.
#[test]
fn native_beside_a_tunnel() -> Result<()> {
    let cluster = Cluster::start_with(Wiring::Bridge, Join::Vxlan, &["--xdp", "native"], |lab| {
        lab.let_xdp_send()
    })?;
    everything_is_reached(&cluster)?;
    let node = cluster.lab.node("node3")?;
    let [early, left] = [
        cluster.event(node, "forwarded_early")?,
        cluster.event(node, "left_to_tc")?,
    ];
    ensure!(
        early == 0 && left > 0,
        "{early} packets by XDP, {left} left to tc"
    );
    Ok(())
}
