//! A large cluster in the kernel's tables: their memory by the kernel's account, and the cost of a
//! verdict compared with identity and LPM. A debug build has a tenth of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapInfo};
use aya::util::KernelVersion;
use portway::compile::{PolicyCompiler, Touched};
use portway::dataplane::PolicyMaps;
use portway::model::policy::{Namespaces, Peer as Named, PolicyPort, PortMatch, Rule, Selector};
use portway::model::{self, NetworkPolicy, PortRange, Snapshot};
use portway::place::policies::PolicyTables;
use proxy_common::net::{IfIndex, LocalPod, Protocol};
use proxy_common::service::Config;

use crate::is_emulated;
use crate::maps;
use crate::peer::Peer;
use crate::programs::{Hook, Loaded};
use crate::segment::{ACK, Segment};

#[path = "../../core/tests/support/large.rs"]
mod large;

use large::{Size, block, cluster, in_namespace, one, pod};

const CIDRS: u32 = 100;

/// Returns the number of namespaces of the cluster.
fn namespaces() -> u32 {
    match (is_emulated(), cfg!(debug_assertions)) {
        (true, _) => 1,
        (false, true) => 10,
        (false, false) => 100,
    }
}

/// Every table of NetworkPolicy.
const TABLES: [&str; 9] = [
    "ROWS",
    "VETHS",
    "CLASSES4",
    "CLASSES6",
    "PREFIXES4",
    "PREFIXES6",
    "MATRIX",
    "VERDICTS",
    "PORTSETS",
];
/// First kernel that reports a map's current memory; older ones report its maximum.
const TELLS_USE: KernelVersion = KernelVersion::new(6, 4, 0);
const DEVICE: IfIndex = IfIndex(1);
const PORT: u16 = 7777;

/// A cluster with its policies in the kernel.
struct Written {
    loaded: Loaded,
    compiler: PolicyCompiler,
    tables: PolicyTables,
    ids: BTreeMap<&'static str, u32>,
}

impl Written {
    fn new(snapshot: &Snapshot, mut loaded: Loaded) -> Result<Self> {
        let id = |name| {
            Ok((
                name,
                id(loaded
                    .ebpf
                    .map(name)
                    .with_context(|| format!("find {name}"))?)?,
            ))
        };
        let ids = TABLES.into_iter().map(id).collect::<Result<_>>()?;
        let mut maps = PolicyMaps::open(|name| {
            loaded
                .ebpf
                .take_map(name)
                .with_context(|| format!("find {name}"))
        })?;
        let (mut compiler, mut tables, begun) = (
            PolicyCompiler::default(),
            PolicyTables::with_room(maps.room()),
            Instant::now(),
        );
        let delta = compiler.compile(snapshot, &Touched::everything());
        let compiled = begun.elapsed();
        let writes = tables.place(compiler.policies(), &delta);
        let placed = begun.elapsed();
        writes.iter().try_for_each(|write| maps.write(write))?;
        println!(
            "{} pods, {} policies, {} prefixes: compiled in {compiled:.1?}, placed in {:.1?}, {} writes made in {:.1?}; {} pods closed",
            snapshot.state.pods.len(),
            snapshot.state.policies.len(),
            compiler.policies().classes.len(),
            placed - compiled,
            writes.len(),
            begun.elapsed() - placed,
            tables.closed().len(),
        );
        Ok(Self {
            loaded,
            compiler,
            tables,
            ids,
        })
    }

    /// Bytes that the tables take.
    fn memory(&self) -> Result<BTreeMap<&'static str, u64>> {
        let each = self
            .ids
            .iter()
            .map(|(name, id): (&&'static str, &u32)| {
                Ok((
                    *name,
                    memory(*id).with_context(|| format!("ask for the memory of {name}"))?,
                ))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let in_kb: Vec<_> = each
            .iter()
            .map(|(name, bytes)| format!("{name} {}", bytes / 1000))
            .collect();
        println!("{} kB: {}", sum(&each) / 1000, in_kb.join(", "));
        Ok(each)
    }
}

fn id(map: &Map) -> Result<u32> {
    let (Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) = map else {
        anyhow::bail!("an unexpected kind of map")
    };
    Ok(data.info()?.id())
}

/// Returns the kernel's figure for a map's memory.
fn memory(id: u32) -> Result<u64> {
    let fd = MapInfo::from_id(id)?.fd()?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let bytes = text
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .context("find memlock")?;
    bytes.trim().parse().context("read memlock")
}

#[test]
fn the_tables_of_a_large_cluster_take_little_memory() -> Result<()> {
    let (all, pods) = (
        cluster(Size {
            namespaces: namespaces(),
            cidrs: CIDRS,
        }),
        cluster(Size {
            namespaces: namespaces(),
            cidrs: 0,
        }),
    );
    let large = sum(&Written::new(&all, Loaded::of_large_size()?)?.memory()?);
    let all = sum(&Written::new(&all, Loaded::of_full_size()?)?.memory()?);
    let pods = Written::new(&pods, Loaded::of_full_size()?)?.memory()?;
    let none = sum(&Written::new(&Snapshot::default(), Loaded::of_full_size()?)?.memory()?);
    assert!(
        none <= sum(&pods) && sum(&pods) <= all && all < large,
        "{none}, {pods:?}, {all}, {large}"
    );
    if KernelVersion::current()? < TELLS_USE {
        println!("this kernel tells what the tables may take at most");
        return Ok(());
    }
    assert!(large < 128 * MEGABYTE, "{large} bytes with prefixes");
    // The hash of IPv6 takes 80 bytes of each pod besides.
    let without_six = sum(&pods) - pods["CLASSES6"];
    assert!(
        without_six < 2 * MEGABYTE && sum(&pods) < 3 * MEGABYTE,
        "{without_six} bytes without prefixes, {pods:?}"
    );
    Ok(())
}

const MEGABYTE: u64 = 1_000_000;

fn sum(memory: &BTreeMap<&str, u64>) -> u64 {
    memory.values().sum()
}

/// Number of peers with a packet each, and of repetitions of each run.
const PEERS: u32 = 512;
const REPEAT: u32 = 16;
const ROUNDS: usize = 21;
/// Number in an emulated machine, where the figures only show that both ways work.
const FEW: u32 = 16;

#[test]
fn a_verdict_costs_less_than_identity_and_lpm() -> Result<()> {
    let mut snapshot = cluster(Size {
        namespaces: namespaces(),
        cidrs: CIDRS,
    });
    // One more policy lets everybody in at one port: no peer is denied, and none allowed by a rule
    // without peers.
    snapshot
        .state
        .policies
        .insert(in_namespace(0, "everybody".into()), everybody());
    println!("small tables");
    verdicts(Written::new(&snapshot, Loaded::of_full_size()?)?, 0.0)?;
    println!("large tables");
    verdicts(Written::new(&snapshot, Loaded::of_large_size()?)?, 2.0)
}

/// Asserts, for each kind of peer, that a verdict is `at_least` times as fast as the other
/// implementation's.
fn verdicts(mut written: Written, at_least: f64) -> Result<()> {
    let name = in_namespace(0, "app-0-0".into());
    let pod_id = written
        .tables
        .pod_id(&name)
        .context("find the pod's pod_id")?;
    let subject = pod(0, 0, 0).addresses[0];
    let IpAddr::V4(addr) = subject else {
        anyhow::bail!("{subject} is no IPv4")
    };
    maps::put_pod(
        &mut written.loaded,
        addr,
        LocalPod {
            device: DEVICE,
            pod_id,
        },
    )?;
    ensure!(
        !written.tables.closed().contains(&name),
        "the pod is closed"
    );
    let peer = peer(&written.compiler)?;
    let packet = |from: Ipv4Addr| {
        Segment::new(
            Protocol::TCP,
            (IpAddr::V4(from), 40000).into(),
            (subject, PORT).into(),
        )
        .flags(ACK)
        .bytes()
    };
    let random = |n: u32| n.wrapping_mul(0x9e37_79b1);
    let peers = if is_emulated() { FEW } else { PEERS };
    let pods = namespaces() * large::APPS * large::PODS_OF_AN_APP;
    let of_pods = (1..=peers).map(|n| Ipv4Addr::from_bits(0x0af4_0000 + random(n) % pods));
    let blocks = namespaces() * large::POLICIES_OF_A_NAMESPACE * CIDRS;
    let outside = (1..=peers).filter_map(|n| match block(random(n) % blocks) {
        Named::Block {
            cidr: ipnet::IpNet::V4(cidr),
            ..
        } => Some(Ipv4Addr::from_bits(cidr.broadcast().to_bits() - 1)),
        Named::Pods { .. } | Named::Block { .. } => None,
    });
    for (what, packets) in [
        ("pods", of_pods.map(packet).collect::<Vec<_>>()),
        ("prefixes", outside.map(packet).collect()),
    ] {
        let [ours, theirs] = compare(&mut written.loaded, &peer, &packets)?;
        let times = theirs / ours.max(1.0);
        println!(
            "{what}: {ours:.0} ns a verdict, identity and LPM {theirs:.0} ns: {times:.1} times"
        );
        assert!(is_emulated() || times >= at_least, "{ours} ns, {theirs} ns");
    }
    let load = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
    println!("load {}", load.trim_end());
    Ok(())
}

fn everybody() -> NetworkPolicy {
    let ports = vec![PolicyPort {
        protocol: Protocol::TCP,
        port: PortMatch::Range(PortRange {
            first: PORT,
            last: PORT,
        }),
    }];
    let everywhere = Named::Block {
        cidr: "0.0.0.0/0".parse().expect("a prefix"),
        except: Default::default(),
    };
    let pods = Named::Pods {
        namespaces: Namespaces::Matching(Selector::default()),
        pods: Selector::default(),
    };
    let rules = vec![Rule {
        peers: vec![everywhere, pods],
        ports,
    }];
    NetworkPolicy {
        pods: one("app", "app-0"),
        ingress: Some(rules),
        egress: None,
    }
}

/// Returns identities for the same pods: one for each class.
fn peer(compiler: &PolicyCompiler) -> Result<Peer> {
    let classes = &compiler.policies().classes;
    let peer = Peer::new(classes.len() as u32)?;
    let mut identities = BTreeMap::new();
    for (prefix, class) in classes {
        if let IpAddr::V4(addr) = prefix.addr() {
            let next = identities.len() as u32 + 1;
            let identity = *identities.entry(class).or_insert(next);
            peer.identify(addr, prefix.prefix_len(), identity)?;
            peer.allow(identity, PORT)?;
        }
    }
    Ok(peer)
}

/// Returns nanoseconds of both verdicts: medians over rounds in which the programs take turns, less
/// the cost of an empty run.
fn compare(loaded: &mut Loaded, peer: &Peer, packets: &[Vec<u8>]) -> Result<[f64; 2]> {
    let config = Config {
        hz: 250,
        opening_timeout: 30,
        ..Config::default()
    };
    let mean = |run: &dyn Fn(&[u8]) -> Result<u32>| -> Result<f64> {
        let sum = packets
            .iter()
            .map(|packet| run(packet).map(f64::from))
            .sum::<Result<f64>>()?;
        Ok(sum / packets.len() as f64)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let rounds = if is_emulated() { 1 } else { ROUNDS };
    for _ in 0..rounds {
        let mut with = |flags| -> Result<f64> {
            maps::configure(loaded, Config { flags, ..config })?;
            let loaded = &*loaded;
            mean(&|packet| loaded.time(Hook::ToPod, DEVICE, packet, REPEAT))
        };
        ours.push(-with(0)? + with(Config::POLICY)?);
        let judged = mean(&|packet| {
            let (allowed, time) = peer.judge(packet, REPEAT)?;
            ensure!(allowed, "a packet is denied");
            Ok(time)
        })?;
        theirs.push(judged - mean(&|packet| Ok(peer.floor(packet, REPEAT)?.1))?);
    }
    Ok([ours, theirs].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[rounds / 2]
    }))
}
