//! Owns the network of these tests: namespaces for the control plane and for a node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use xtask::lab::controlplane::{ControlPlane, ControlPlaneSpec};

/// A network namespace with a bridge `lan` that has the API server's address; gone when dropped.
pub struct Lan(String);

impl Lan {
    /// Makes the namespace and its bridge.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let lan = Self(format!(
            "pw-cp-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        run(&format!("ip netns add {}", lan.0))?;
        for line in [
            "link set lo up",
            "link add lan type bridge",
            "addr add 192.0.2.250/24 dev lan",
            "link set lan up",
        ] {
            run(&format!("ip -n {} {line}", lan.0))?;
        }
        Ok(lan)
    }

    /// The namespace's name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The namespace's file.
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Starts a control plane here, and prints how long that took.
    pub fn control_plane(&self) -> Result<ControlPlane> {
        let start = Instant::now();
        let service_ranges = vec!["10.96.0.0/12".parse()?, "fd00:96::/112".parse()?];
        let plane = ControlPlane::start(&ControlPlaneSpec {
            netns: self.netns(),
            address: "192.0.2.250".parse()?,
            service_ranges,
        })?;
        eprintln!("control plane ready after {:.1?}", start.elapsed());
        Ok(plane)
    }

    /// Adds a node: a namespace of its own at `address` on the bridge.
    pub fn node(&self, address: &str) -> Result<Lan> {
        let node = Lan(format!("{}-n", self.0));
        run(&format!("ip netns add {}", node.0))?;
        run(&format!("ip -n {} link set lo up", node.0))?;
        run(&format!(
            "ip -n {} link add eth0 type veth peer name n1 netns {}",
            node.0, self.0
        ))?;
        run(&format!("ip -n {} link set n1 up master lan", self.0))?;
        run(&format!("ip -n {} addr add {address}/24 dev eth0", node.0))?;
        run(&format!("ip -n {} link set eth0 up", node.0))?;
        Ok(node)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns del {}", self.0));
    }
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().context("find a command")?)
        .args(words)
        .status()
        .with_context(|| format!("run {line}"))?;
    ensure!(status.success(), "{line}: {status} (these tests need root)");
    Ok(())
}
