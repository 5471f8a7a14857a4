//! `cargo xtask load` and `unload` on a device of a network namespace: what is there in between,
//! and that nothing is there after.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};
use xtask::lab::controlplane::wait_for;
use xtask::lab::host::{Host, OwnedDir, Tools};
use xtask::lab::netns::Namespace;
use xtask::lab::owned::{self, LabId};
use xtask::load::{LoadArgs, Loaded, Pins, load, unload};

const DEVICE: &str = "uplink0";
/// The kernel takes programs apart a moment after the last one who objects them has let go.
const TAKEN_APART: Duration = Duration::from_secs(10);
/// A backend that is a process of the host itself, so that one device is all that is needed.
const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec: { nodeName: node1, hostNetwork: true, containers: [{ name: web, image: web, ports: [{ containerPort: 8080 }] }] }
status:
  phase: Running
  podIP: 192.0.2.1
  podIPs: [{ ip: 192.0.2.1 }]
  conditions: [{ type: Ready, status: 'True' }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { type: NodePort, selector: { app: web }, ports: [{ port: 80, targetPort: 8080, nodePort: 30080 }] }
";

/// A host with one device, and a client at the other end of it.
struct Rig {
    portway: PathBuf,
    host: Namespace,
    client: Namespace,
    state: OwnedDir,
    files: OwnedDir,
}

/// The kernel's objects that belong to a state directory, by ids, which the kernel does not reuse.
#[derive(Debug, Default, PartialEq, Eq)]
struct KernelObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Rig {
    fn set_up() -> Result<Self> {
        owned::clean_up_on_signals();
        let bpffs = Host::prepare()?.bpffs;
        let id = LabId::fresh();
        let mut spaces = Namespace::create(&[id.name("host"), id.name("client")])?.into_iter();
        let mut next = || spaces.next().context("find a namespace just made");
        let (host, client) = (next()?, next()?);
        host.ip(&format!(
            "link set lo up\nlink add {DEVICE} type veth peer name eth0 netns {}\n",
            client.name()
        ))?;
        host.ip(&format!(
            "link set {DEVICE} up\naddr add 192.0.2.1/24 dev {DEVICE}\n"
        ))?;
        client.ip("link set lo up\nlink set eth0 up\naddr add 192.0.2.100/24 dev eth0\n")?;
        Ok(Self {
            portway: Tools::next_to(env!("CARGO_BIN_EXE_xtask")).portway,
            host,
            client,
            state: OwnedDir::to_be_made(bpffs.join(id.name("load"))),
            files: OwnedDir::directory(std::env::temp_dir().join(id.as_str()))?,
        })
    }

    fn pins(&self) -> Pins {
        Pins {
            state_dir: Some(self.state.path().to_owned()),
        }
    }

    fn load(&self, device: &str, manifests: Option<PathBuf>) -> Result<Loaded> {
        let agent = vec!["--node-name=node1".to_owned()];
        let args = LoadArgs {
            device: vec![device.to_owned()],
            manifests,
            pins: self.pins(),
            agent,
        };
        self.host.run(|| load(&self.portway, &args))
    }

    fn unload(&self) -> Result<()> {
        self.host.run(|| unload(&self.portway, &self.pins()))
    }

    /// Returns iproute2's output about the devices: qdiscs, filters, and XDP programs.
    fn devices(&self) -> Result<String> {
        let mut text = String::new();
        for line in ["tc qdisc show", "ip -details link show"] {
            text += &self.iproute2(line)?;
        }
        // Without a clsact qdisc there is nowhere to look for filters, which tc takes for an error.
        for side in ["ingress", "egress"] {
            text += &self
                .iproute2(&format!("tc filter show dev {DEVICE} {side}"))
                .unwrap_or_default();
        }
        Ok(text)
    }

    fn iproute2(&self, line: &str) -> Result<String> {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().context("name a command")?);
        self.host.output(command.args(words))
    }

    /// The maps that the next one to load adopts.
    fn pinned_maps(&self) -> Result<BTreeSet<u32>> {
        files(&self.state.path().join("maps"))
            .iter()
            .map(|pin| Ok(MapInfo::from_pin(pin)?.id()))
            .collect()
    }

    /// Beginning at what is pinned, all that hangs together: programs that use our maps, their
    /// other maps, their links.
    fn kernel_objects(&self) -> Result<KernelObjects> {
        let mut maps = self.pinned_maps()?;
        let pinned = files(&self.state.path().join("programs"));
        let mut programs: BTreeSet<u32> = pinned
            .iter()
            .map(|pin| Ok(ProgramInfo::from_pin(pin)?.id()))
            .collect::<Result<_>>()?;
        // What goes while it is looked at is another lab's.
        let all: Vec<(u32, Vec<u32>)> = loaded_programs()
            .flatten()
            .filter_map(|p| Some((p.id(), p.map_ids().ok()??)))
            .collect();
        programs.extend(
            all.iter()
                .filter(|(_, used)| used.iter().any(|id| maps.contains(id)))
                .map(|(id, _)| *id),
        );
        maps.extend(
            all.iter()
                .filter(|(id, _)| programs.contains(id))
                .flat_map(|(_, used)| used),
        );
        let links = loaded_links()
            .flatten()
            .filter(|link| programs.contains(&link.program_id()))
            .map(|link| link.id());
        Ok(KernelObjects {
            links: links.collect(),
            programs,
            maps,
        })
    }
}

impl KernelObjects {
    /// Returns those that the kernel still lists.
    fn left(&self) -> Self {
        let left = |before: &BTreeSet<u32>, now: BTreeSet<u32>| {
            before.intersection(&now).copied().collect()
        };
        Self {
            programs: left(
                &self.programs,
                loaded_programs()
                    .flatten()
                    .map(|program| program.id())
                    .collect(),
            ),
            maps: left(
                &self.maps,
                loaded_maps().flatten().map(|map| map.id()).collect(),
            ),
            links: left(
                &self.links,
                loaded_links().flatten().map(|link| link.id()).collect(),
            ),
        }
    }

    fn wait_until_gone(&self) -> Result<()> {
        wait_for("the kernel to be rid of it all", TAKEN_APART, || {
            Ok((self.left() == Self::default()).then_some(()))
        })
        .with_context(|| format!("{:?} stay", self.left()))
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn unload_leaves_nothing_of_load_behind() -> Result<()> {
    let rig = Rig::set_up()?;
    let before = rig.devices()?;
    let loaded = rig.load(DEVICE, None)?;
    println!("{loaded}");
    let objects = rig.kernel_objects()?;
    println!("{objects:?}");
    ensure!(
        objects.left() == objects,
        "the kernel does not list what is pinned: {objects:?}"
    );
    // Both directions of the device, and the clock, which no device has.
    ensure!(
        objects.programs.len() == 3 && objects.maps.len() >= 16,
        "not the programs of one device and all maps: {objects:?}"
    );
    ensure!(
        loaded.left.frontends == 0,
        "a Service from nowhere: {loaded}"
    );
    ensure!(
        loaded.left.hooks.len() == 2,
        "a device has two hooks: {loaded}"
    );
    ensure!(
        rig.kernel_objects()?.links.len()
            == loaded
                .left
                .hooks
                .iter()
                .filter(|hook| hook.by != "clsact")
                .count()
    );
    let names: Vec<&str> = loaded
        .verified
        .iter()
        .map(|program| program.name.as_str())
        .collect();
    for name in ["from_device", "from_pod", "to_device", "to_pod", "now"] {
        ensure!(
            names.contains(&name),
            "the verifier's word on {name} is missing: {names:?}"
        );
    }
    rig.unload()?;
    ensure!(
        !rig.state.path().exists(),
        "{} is still there: {:?}",
        rig.state.path().display(),
        files(rig.state.path())
    );
    objects.wait_until_gone()?;
    let after = rig.devices()?;
    ensure!(
        before == after,
        "the devices before:\n{before}\nand after:\n{after}"
    );
    Ok(())
}

#[test]
fn loading_again_adopts_what_is_there() -> Result<()> {
    let rig = Rig::set_up()?;
    rig.load(DEVICE, None)?;
    let (first, maps) = (rig.kernel_objects()?, rig.pinned_maps()?);
    rig.load(DEVICE, None)?;
    let second = rig.kernel_objects()?;
    let kept: BTreeSet<_> = rig.pinned_maps()?.intersection(&maps).copied().collect();
    // Those of NetworkPolicy, with the pods' addresses, are each loader's own.
    ensure!(
        kept.len() >= 16 && maps.len() - kept.len() == 11,
        "of the pinned maps {maps:?} these were kept: {kept:?}"
    );
    ensure!(
        first.links == second.links,
        "the links were not kept: {first:?} became {second:?}"
    );
    ensure!(
        first.programs.is_disjoint(&second.programs),
        "the programs were not replaced: {first:?} became {second:?}"
    );
    let replaced = KernelObjects {
        maps: first.maps.difference(&kept).copied().collect(),
        links: BTreeSet::new(),
        ..first
    };
    replaced
        .wait_until_gone()
        .context("be rid of the first load's programs and constants")?;
    rig.unload()?;
    second.wait_until_gone()
}

#[test]
fn what_was_loaded_serves_a_node_port_without_an_agent() -> Result<()> {
    let rig = Rig::set_up()?;
    fs::write(rig.files.path().join("web.yaml"), WEB).context("write the manifest")?;
    let loaded = rig.load(DEVICE, Some(rig.files.path().to_owned()))?;
    ensure!(loaded.left.frontends > 0, "no Service was loaded: {loaded}");
    let listener = rig
        .host
        .run(|| TcpListener::bind("192.0.2.1:8080").context("listen as the backend"))?;
    let server = rig
        .host
        .start(move || Ok(listener.accept()?.0.write_all(b"from 8080")?));
    let answer = rig.client.run(|| {
        let near = "192.0.2.1:30080".parse()?;
        let mut stream = TcpStream::connect_timeout(&near, Duration::from_secs(5))
            .context("connect to the nodePort")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .context("read the answer")?;
        Ok(text)
    })?;
    ensure!(
        answer == "from 8080",
        "an answer of somebody else: {answer}"
    );
    server.join().expect("the backend does not panic")?;
    let objects = rig.kernel_objects()?;
    rig.unload()?;
    objects.wait_until_gone()
}

#[test]
fn a_device_that_is_not_there_is_named_and_nothing_is_loaded() -> Result<()> {
    let rig = Rig::set_up()?;
    let error = format!(
        "{:#}",
        rig.load("uplink9", None).expect_err("there is no uplink9")
    );
    ensure!(
        error.contains("no device uplink9") && error.contains(DEVICE),
        "{error}"
    );
    ensure!(
        !rig.state.path().exists(),
        "{} was made",
        rig.state.path().display()
    );
    rig.unload().context("unload nothing")
}
