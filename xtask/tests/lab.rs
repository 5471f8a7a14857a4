//! Tests the lab itself, without Portway: everything reaches what it should, and nothing stays
//! behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::lab::Lab;
use xtask::lab::hold::three_nodes;
use xtask::lab::host::{Host, Tools};
use xtask::lab::load::{self, Load};
use xtask::lab::probe::{self, Answer, Kind};
use xtask::lab::topology::{
    FAR_CLIENT, Family, Join, NEAR_CLIENT, PodSpec, Serves, Topology, Wiring,
};

fn tools() -> Tools {
    Tools::next_to(env!("CARGO_BIN_EXE_xtask"))
}

/// The three nodes, and a pod in the third's own network.
fn start(wiring: Wiring, join: Join) -> Result<Lab> {
    let mut topology = three_nodes(wiring, join);
    topology.nodes[2].pods.push(
        PodSpec::new("host-1")
            .serving(8080, Serves::Http)
            .serving(8080, Serves::UdpEcho)
            .on_host_network(),
    );
    let begin = Instant::now();
    let lab = Lab::start(topology, tools())?;
    println!("{wiring:?} {join:?}: up after {:?}", begin.elapsed());
    Ok(lab)
}

/// Each pod's name, and the addresses of its HTTP server.
fn servers(lab: &Lab) -> Vec<(String, SocketAddr)> {
    let pods = lab.pods().map(|(_, pod)| {
        (
            pod.name().to_owned(),
            pod.addresses(),
            pod.spec().ports[0].port,
        )
    });
    pods.flat_map(
        |(name, addresses, port): (String, xtask::lab::topology::Addresses, u16)| {
            addresses
                .both()
                .map(|ip| (name.clone(), SocketAddr::new(ip, port)))
        },
    )
    .collect()
}

fn everybody_reaches_everybody(wiring: Wiring, join: Join) -> Result<()> {
    let lab = start(wiring, join)?;
    let servers = servers(&lab);
    ensure!(
        servers.len() == 10,
        "five pods with two addresses each, not {servers:?}"
    );
    let near = (lab.near_client(), Some(NEAR_CLIENT));
    let far = (lab.far_client(), Some(FAR_CLIENT));
    let nodes = lab.nodes().iter().map(|node| (node.ns(), None));
    // A node has several addresses, of which the kernel chooses one by the way that it takes.
    let pods = lab
        .pods()
        .map(|(_, pod)| (pod.ns(), pod.device().map(|_| pod.addresses())));
    for (from, address) in [near, far].into_iter().chain(nodes).chain(pods) {
        from.run(|| {
            servers.iter().try_for_each(|(name, addr)| {
                let answer = probe::http(*addr);
                let facts = answer
                    .served()
                    .with_context(|| format!("{} asks {name} at {addr}: {answer}", from.name()))?;
                ensure!(
                    facts.pod == *name && facts.server == *addr,
                    "{facts} instead of {name} at {addr}"
                );
                let family = if addr.is_ipv4() {
                    Family::V4
                } else {
                    Family::V6
                };
                let expected = address.map_or(facts.client_ip(), |a| a.of(family));
                ensure!(
                    facts.client_ip() == expected,
                    "{facts} instead of the client {expected}"
                );
                Ok(())
            })
        })?;
    }
    datagrams_echoes_and_bulk(&lab)
}

fn datagrams_echoes_and_bulk(lab: &Lab) -> Result<()> {
    let web3 = lab.pod("web-3")?.addresses();
    for from in [
        lab.far_client(),
        lab.pod("web-1")?.ns(),
        lab.pod("web-4")?.ns(),
    ] {
        from.run(|| {
            for ip in web3.both() {
                for kind in [Kind::TcpEcho, Kind::Udp] {
                    let answer = probe::ask(kind, (ip, 7).into());
                    ensure!(
                        answer.served().is_some_and(|facts| facts.pod == "web-3"),
                        "{kind:?} from {}: {answer}",
                        from.name()
                    );
                }
                let bytes = probe::Session::open((ip, 80).into())?
                    .get("/bytes/3000000")
                    .context("fetch 3 MB")?;
                ensure!(
                    bytes.len() == 3_000_000,
                    "{} bytes instead of 3 MB",
                    bytes.len()
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn bridge_and_routes() -> Result<()> {
    everybody_reaches_everybody(Wiring::Bridge, Join::Routes)
}

#[test]
fn bridge_and_vxlan() -> Result<()> {
    everybody_reaches_everybody(Wiring::Bridge, Join::Vxlan)
}

#[test]
fn point_to_point_and_routes() -> Result<()> {
    everybody_reaches_everybody(Wiring::PointToPoint, Join::Routes)
}

#[test]
fn point_to_point_and_vxlan() -> Result<()> {
    everybody_reaches_everybody(Wiring::PointToPoint, Join::Vxlan)
}

#[test]
fn refused_is_told_from_unanswered() -> Result<()> {
    let lab = start(Wiring::PointToPoint, Join::Routes)?;
    let ip = lab.pod("web-1")?.addresses();
    lab.near_client().run(|| {
        for ip in ip.both() {
            for kind in [Kind::Http, Kind::Udp] {
                let answer = probe::ask(kind, (ip, 81).into());
                ensure!(answer == Answer::Refused, "a closed port: {answer}");
            }
        }
        Ok(())
    })?;
    lab.pod("web-1")?.ns().ip("link set eth0 down\n")?;
    let answer = lab
        .near_client()
        .run(|| Ok(probe::ask(Kind::Udp, (ip.v4, 7).into())))?;
    ensure!(
        answer == Answer::TimedOut,
        "a pod that is cut off: {answer}"
    );
    Ok(())
}

#[test]
fn a_process_of_a_node_asks_from_the_nodes_cgroup() -> Result<()> {
    let lab = start(Wiring::Bridge, Join::Routes)?;
    let node = lab.node("node1")?;
    let tally =
        node.survey_as_process(Kind::Http, (lab.pod("web-3")?.addresses().v4, 80).into(), 3)?;
    ensure!(tally.by_pod.get("web-3") == Some(&3), "{tally}");
    let command = || {
        let mut command = Command::new("cat");
        command.arg("/proc/self/cgroup").stdout(Stdio::piped());
        command
    };
    let cgroups = node.spawn(command())?.all_output()?;
    ensure!(
        cgroups
            .lines()
            .any(|line| line.ends_with(&format!("/{}/node1", lab.id()))),
        "{cgroups}"
    );
    Ok(())
}

#[test]
fn pods_come_and_go() -> Result<()> {
    let mut lab = start(Wiring::Bridge, Join::Vxlan)?;
    let gone = SocketAddr::from((lab.pod("web-1")?.addresses().v4, 80));
    let node = lab.node_mut("node1")?;
    node.remove_pod("web-1")?;
    let new = node.add_pod(PodSpec::new("late").serving(80, Serves::Http))?;
    let new = SocketAddr::from((new.addresses().v6, 80));
    ensure!(new.ip() != gone.ip(), "an address is not used twice");
    lab.far_client().run(|| {
        ensure!(
            probe::http(gone).served().is_none(),
            "a removed pod answers"
        );
        let answer = probe::http(new);
        ensure!(
            answer.served().is_some_and(|facts| facts.pod == "late"),
            "a new pod: {answer}"
        );
        Ok(())
    })
}

#[test]
fn a_sender_without_checksum_offload_is_understood() -> Result<()> {
    let lab = start(Wiring::Bridge, Join::Vxlan)?;
    lab.near_client().switch_checksum_offload_off("eth0")?;
    lab.pod("web-3")?.ns().switch_checksum_offload_off("eth0")?;
    let addr = (lab.pod("web-3")?.addresses().v4, 80).into();
    let answer = lab.near_client().run(|| Ok(probe::http(addr)))?;
    ensure!(answer.served().is_some(), "{answer}");
    Ok(())
}

#[test]
fn a_load_counts_what_is_answered_and_what_fails() -> Result<()> {
    let mut lab = start(Wiring::PointToPoint, Join::Routes)?;
    let target = SocketAddr::from((lab.pod("web-3")?.addresses().v4, 80));
    let mut wanted = Load::new(target, 2000, Duration::from_secs(1));
    let report = lab.far_client().run(|| load::run(&wanted))?;
    println!("{report}");
    ensure!(
        report.failed() == 0 && report.answered() == 2000,
        "{report}"
    );
    ensure!(
        report.fresh.answered == 400 && report.by_pod["web-3"] == 2000,
        "{report}"
    );

    (wanted.patience, wanted.rate) = (Duration::from_millis(300), 500);
    let running = lab.far_client().start(move || load::run(&wanted));
    std::thread::sleep(Duration::from_millis(500));
    lab.node_mut("node2")?.remove_pod("web-3")?;
    let report = running.join().expect("the load does not panic")?;
    println!("{report}");
    ensure!(
        report.kept_alive.failed.values().sum::<usize>() > 0
            && report.fresh.failed.values().sum::<usize>() > 50,
        "{report}"
    );
    Ok(())
}

/// Returns everything on the host that has the name of the lab or of a part of it.
fn remains(lab: &str) -> Result<Vec<String>> {
    let host = Host::prepare()?;
    let dirs = [
        Path::new("/var/run/netns"),
        &host.cgroups,
        &host.bpffs,
        &std::env::temp_dir(),
    ]
    .map(Path::to_path_buf);
    let entries = dirs
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names
        .filter(|name| name == lab || name.starts_with(&format!("{lab}-")))
        .collect())
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    let lab = start(Wiring::Bridge, Join::Vxlan)?;
    let id = lab.id().to_owned();
    fs::create_dir(lab.node("node1")?.state_dir())
        .context("make a state directory, as the agent does")?;
    ensure!(
        remains(&id)?.len() > 10,
        "a running lab has namespaces, a cgroup, directories: {:?}",
        remains(&id)?
    );
    let begin = Instant::now();
    drop(lab);
    println!("down after {:?}", begin.elapsed());
    ensure!(remains(&id)?.is_empty(), "{:?}", remains(&id)?);
    Ok(())
}

#[test]
fn a_panic_in_a_namespace_leaves_nothing_behind() -> Result<()> {
    let lab = start(Wiring::Bridge, Join::Routes)?;
    let id = lab.id().to_owned();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _ = lab
            .near_client()
            .run(|| -> Result<()> { panic!("on purpose") });
    }));
    ensure!(panicked.is_err(), "a panic inside goes on outside");
    ensure!(remains(&id)?.is_empty(), "{:?}", remains(&id)?);
    Ok(())
}

/// Starts `xtask lab`; gives it and the lab's name once it is up.
fn held_lab() -> Result<(Child, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("lab")
        .stdout(Stdio::piped())
        .spawn()
        .context("start xtask lab")?;
    let mut lines = BufReader::new(child.stdout.take().context("read output")?).lines();
    let line = lines.next().context("read the first line")??;
    let id = line
        .strip_suffix(" is up")
        .with_context(|| format!("find the lab's name in {line:?}"))?
        .to_owned();
    lines
        .find(|line| line.as_ref().is_ok_and(|line| line.contains("Ctrl-C")))
        .context("read the last line")??;
    Ok((child, id))
}

#[test]
fn an_interrupted_lab_leaves_nothing_behind() -> Result<()> {
    let (mut child, id) = held_lab()?;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).context("send SIGINT")?;
    let status = child.wait().context("wait for xtask lab")?;
    ensure!(status.code() == Some(130), "{status}");
    ensure!(remains(&id)?.is_empty(), "{:?}", remains(&id)?);
    Ok(())
}

#[test]
fn what_a_killed_lab_leaves_is_swept_by_the_next() -> Result<()> {
    let (mut child, id) = held_lab()?;
    child.kill().context("kill xtask lab")?;
    child.wait().context("wait for xtask lab")?;
    let begin = Instant::now();
    let procs = Host::prepare()?
        .cgroups
        .join(&id)
        .join("node1/cgroup.procs");
    // Another test's lab may sweep first; then the file is gone.
    while fs::read_to_string(&procs).is_ok_and(|pids| !pids.is_empty()) {
        ensure!(
            begin.elapsed() < Duration::from_secs(5),
            "pods outlive their lab"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(Lab::start(
        Topology::new(Wiring::Bridge, Join::Routes),
        tools(),
    )?);
    ensure!(remains(&id)?.is_empty(), "{:?}", remains(&id)?);
    Ok(())
}
