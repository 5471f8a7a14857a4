//! The programs attached to a device, for results that a test run does not have: VLAN tags that the
//! kernel removed, and the log.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use proxy_common::net::{IfIndex, V4, V6};
use proxy_common::reason::Reason;
use proxy_ebpf::Table;

use crate::connect;
use crate::generate::{self, Remote};
use crate::maps::Maps;
use crate::namespace::{DEVICES, Network, in_namespace};
use crate::programs::{Hook, Loaded};

/// Time limit for frames from one end of a veth pair to the program at the other; generous, since
/// the machine is shared.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn frames_with_a_tag_are_the_vlan_devices_business() -> Result<()> {
    in_namespace(|network| {
        tagged::<V4>(network)?;
        tagged::<V6>(network)
    })
}

/// A SYN to the nodePort opens a flow, also with a priority tag (VLAN 0). Inside of a VLAN, with
/// the tag that the kernel keeps outside of the packet, it does not.
fn tagged<F: Maps>(network: &Network) -> Result<()> {
    let mut loaded = Loaded::new()?;
    let mut memory = generate::node_port_to::<F>(network, &[Remote::Pod]);
    memory.config.masquerade_len = 64;
    F::fill(&mut loaded, &memory)?;
    attach(&mut loaded, DEVICES[0])?;
    for (client, tag) in [(1, Some([0x00, 100])), (2, Some([0xe0, 0])), (3, None)] {
        let mut frame = connect::<F>(client).bytes();
        if let Some([a, b]) = tag {
            frame.splice(12..12, [0x81, 0x00, a, b]);
        }
        send("peer0", &frame)?;
    }
    let deadline = Instant::now() + PATIENCE;
    // Frames of one device keep their order: once the last has opened its flow, all have been met.
    while !has_flow::<F>(&loaded, 3)? {
        ensure!(
            Instant::now() < deadline,
            "not all frames have met the program"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    ensure!(
        has_flow::<F>(&loaded, 2)?,
        "the frame with a priority opened no flow"
    );
    ensure!(
        !has_flow::<F>(&loaded, 1)?,
        "the frame of a VLAN opened a flow"
    );
    Ok(())
}

/// Returns true if the client of this port has a half-open flow.
fn has_flow<F: Maps>(loaded: &Loaded, client: u16) -> Result<bool> {
    let flows = F::flows(loaded, Table::Opening)?;
    Ok(flows
        .keys()
        .any(|key| key.sport.number() == client && key.dport.number() == generate::NODE_PORT))
}

fn attach(loaded: &mut Loaded, device: &str) -> Result<()> {
    let program: &mut SchedClassifier = loaded
        .ebpf
        .program_mut("from_device")
        .context("find a program")?
        .try_into()?;
    if program.attach(device, TcAttachType::Ingress).is_err() {
        // Before Linux 6.6.
        qdisc_add_clsact(device).context("add a clsact qdisc")?;
        program
            .attach(device, TcAttachType::Ingress)
            .context("attach a filter")?;
    }
    Ok(())
}

/// Sends a whole frame by a device.
fn send(device: &str, frame: &[u8]) -> Result<()> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        None,
    )
    .context("open a packet socket")?;
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("find {device}"))?;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the frame and the address live for the call, and their lengths are their own.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            len,
        )
    };
    ensure!(
        sent == frame.len() as isize,
        "send a frame: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

#[test]
fn the_log_tells_opened_flows_and_stopped_packets() -> Result<()> {
    in_namespace(|network| {
        let mut loaded = Loaded::logging(aya_log::Level::Debug as u8)?;
        logged::<V4>(&mut loaded, network)?;
        let mut loaded = Loaded::logging(aya_log::Level::Debug as u8)?;
        logged::<V6>(&mut loaded, network)
    })
}

fn logged<F: Maps>(loaded: &mut Loaded, network: &Network) -> Result<()> {
    let lines = Lines::default();
    let mut log =
        EbpfLogger::init_with_logger(&mut loaded.ebpf, lines.clone()).context("open the log")?;
    F::fill(
        loaded,
        &generate::node_port_to::<F>(network, &[Remote::Pod]),
    )?;
    let (opened, _) = loaded.tc(
        Hook::FromDevice,
        network.device(0),
        &connect::<F>(1).bytes(),
    )?;
    F::fill(loaded, &generate::node_port_to::<F>(network, &[]))?;
    let (refused, _) = loaded.tc(
        Hook::FromDevice,
        network.device(0),
        &connect::<F>(2).bytes(),
    )?;
    ensure!(
        opened.is_ok() && refused.is_ok(),
        "the programs said {opened:?}, {refused:?}"
    );
    log.flush();
    let [client, node, pod] = [generate::CLIENT, generate::NODE, generate::REMOTE].map(F::ip);
    let IfIndex(device) = network.device(0);
    let line = |port, what: String| {
        format!("device#{device}: protocol#6 {client} port {port} to {node} port 30080: {what}")
    };
    let wanted = [
        line(1, format!("opened to {pod} port 8080")),
        line(2, format!("stopped, reason#{}", Reason::NoBackend as u32)),
    ];
    assert_eq!(*lines.0.lock().expect("no panic"), wanted);
    Ok(())
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, record: &Record) {
        self.0
            .lock()
            .expect("no panic")
            .push(record.args().to_string());
    }
    fn flush(&self) {}
}
