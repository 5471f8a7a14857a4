//! The programs in the kernel: each meets the verifier, and does to thousands of packets what the
//! library does on the host.
//!
//! Needs root and the veth module; nothing else of the machine is used: each test lives in a
//! network namespace of its own, and attaches nothing. `PORTWAY_TEST_SEED` repeats a run of the
//! differential test.

#[path = "../../../proxy-ebpf/tests/support/family.rs"]
mod family;
#[path = "../../../proxy-ebpf/tests/support/segment.rs"]
#[expect(dead_code, reason = "the packet path's own tests need the rest")]
mod segment;

mod attached;
#[path = "../support/cgroup.rs"]
mod cgroup;
mod cost;
mod crowds;
mod differential;
mod generate;
mod maps;
mod namespace;
mod peer;
mod policies;
mod programs;
mod scale;
mod sockets;
mod storm;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use proxy_common::net::{Protocol, V4, V6};
use proxy_common::reason::Reason;
use proxy_ebpf::Action;

use family::{Net, end};
use generate::{Dice, MASQUERADE_FIRST, NODE, NODE_PORT, Remote};
use maps::Maps;
use namespace::{Network, in_namespace};
use portway::dataplane::SOCKET_PROGRAMS;
use programs::{Hook, Loaded, PROGRAMS, XDP};
use segment::{SYN, Segment};

/// Most instructions that the verifier may process per tc program: about twice today's number, far
/// below its limit of a million.
const BUDGET_TC: u32 = 400_000;
/// Budget for XDP. Its direct access costs the verifier more.
const BUDGET_XDP: u32 = 20_000;
/// Budget for the socket hooks.
const BUDGET_SOCKETS: u32 = 60_000;

/// Returns true in an emulated machine, which is some twenty times slower, so that measurements
/// mean nothing.
fn is_emulated() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| cpus.contains("QEMU"))
}

#[test]
fn every_program_meets_the_verifier() -> Result<()> {
    println!("without a log");
    within_budget(&Loaded::new()?)?;
    println!("with the log of flows and drops");
    within_budget(&Loaded::logging(aya_log::Level::Debug as u8)?)
}

fn within_budget(loaded: &Loaded) -> Result<()> {
    for name in PROGRAMS.into_iter().chain(XDP).chain(SOCKET_PROGRAMS) {
        let Some(program) = loaded.info(name)? else {
            println!("{name}: not for this kernel");
            continue;
        };
        let budget = match () {
            () if XDP.contains(&name) => BUDGET_XDP,
            () if SOCKET_PROGRAMS.contains(&name) => BUDGET_SOCKETS,
            () => BUDGET_TC,
        };
        match program.verified_instruction_count() {
            Some(count) => {
                println!("{name}: {count} instructions verified, at most {budget}");
                assert!(
                    count <= budget,
                    "{name}: {count} instructions verified, more than {budget}"
                );
            }
            None => println!("{name}: loaded; this kernel does not count verified instructions"),
        }
    }
    Ok(())
}

#[test]
fn kernel_and_library_do_the_same() -> Result<()> {
    let seed = Dice::seed()?;
    println!("PORTWAY_TEST_SEED={seed}");
    in_namespace(move |network| {
        let mut loaded = Loaded::new()?;
        let mut seen = differential::run::<V4>(&mut loaded, network, seed)?;
        seen.add(differential::run::<V6>(&mut loaded, network, seed)?);
        println!("{seen}");
        Ok(())
    })
}

/// P32: policies change a thousand times a second; each packet gets the verdict of a state that was
/// in force while it passed.
#[test]
fn p32_no_packet_meets_a_verdict_of_neither_state() -> Result<()> {
    let seed = Dice::seed()?;
    println!("PORTWAY_TEST_SEED={seed}");
    let seconds = std::env::var("PORTWAY_STORM_SECONDS")
        .ok()
        .map(|text| text.parse())
        .transpose()?
        .unwrap_or(3);
    let came = storm::storm(
        &mut Dice::new(seed),
        std::time::Duration::from_secs(seconds),
    )?;
    let storm::Came {
        edits,
        packets,
        between,
        seconds,
        took,
    } = came;
    println!(
        "{edits} edits in {seconds:.1} s ({:.0}/s), {packets} packets, {between} of them beside a change",
        edits as f64 / seconds
    );
    println!(
        "{took:.1?}: an edit is {:.1} judgements",
        took.in_judgements()
    );
    // Debug builds, parallel tests and emulated machines are slower.
    let optimized = !cfg!(debug_assertions);
    assert!(
        !optimized || edits as f64 / seconds >= 1000.0,
        "{edits} edits in {seconds:.1} s"
    );
    assert!(
        took.in_judgements() < 40.0,
        "an edit is {:.1} judgements",
        took.in_judgements()
    );
    // A minute of an optimized storm must judge a million packets.
    assert!(
        !optimized || seconds < 60.0 || packets >= 1_000_000,
        "{packets} packets"
    );
    assert!(
        packets > 100 && between > 0,
        "{packets} packets, {between} beside a change"
    );
    Ok(())
}

/// P32: the same edits on tables in memory, checked after every write.
#[test]
fn p32_no_write_of_a_storm_shows_a_verdict_of_neither_state() -> Result<()> {
    let seed = Dice::seed()?;
    println!("PORTWAY_TEST_SEED={seed}");
    let edits = match (is_emulated(), cfg!(debug_assertions)) {
        (true, _) => 20,
        (false, true) => 400,
        (false, false) => 4000,
    };
    let writes = storm::without_kernel(&mut Dice::new(seed), edits)?;
    println!("{writes} writes");
    Ok(())
}

#[test]
fn masquerade_ports_are_random_and_unique() -> Result<()> {
    in_namespace(|network| {
        let mut loaded = Loaded::new()?;
        masquerade::<V4>(&mut loaded, network)?;
        masquerade::<V6>(&mut loaded, network)
    })
}

/// V12: in the kernel, with its random numbers, each connection gets a port of the range that no
/// other has.
fn masquerade<F: Maps>(loaded: &mut Loaded, network: &Network) -> Result<()> {
    let mut memory = generate::node_port_to::<F>(network, &[Remote::Pod]);
    memory.config.masquerade_len = 64;
    F::fill(loaded, &memory)?;
    let mut ports = BTreeSet::new();
    for client in 1..=32 {
        let (said, bytes) = loaded.tc(
            Hook::FromDevice,
            network.device(0),
            &connect::<F>(client).bytes(),
        )?;
        assert_eq!(said, Ok(Action::Neighbour(network.device(0))));
        let left = Segment::read(&bytes).expect("a valid packet");
        assert_eq!(left.src.ip(), F::ip(NODE));
        assert!(
            (MASQUERADE_FIRST..MASQUERADE_FIRST + 64).contains(&left.src.port()),
            "{}",
            left.src
        );
        assert!(
            ports.insert(left.src.port()),
            "port {} twice",
            left.src.port()
        );
    }
    Ok(())
}

#[test]
fn refusals_are_rate_limited() -> Result<()> {
    in_namespace(|network| {
        namespace::stay_on_this_cpu()?;
        let mut loaded = Loaded::new()?;
        let mut memory = generate::node_port_to::<V4>(network, &[]);
        // A second that is longer than the test.
        memory.config.hz = 1 << 30;
        V4::fill(&mut loaded, &memory)?;
        // Jiffies may be within that "second" of zero, after a boot or before a wrap: begin one by
        // hand.
        let now = loaded.now()?;
        loaded.set_refusals(now, 0)?;
        let syn = connect::<V4>(1).bytes();
        for _ in 0..1000 {
            let (said, _) = loaded.tc(Hook::FromDevice, network.device(0), &syn)?;
            assert_eq!(said, Ok(Action::Transmit(network.device(0))));
        }
        let (said, bytes) = loaded.tc(Hook::FromDevice, network.device(0), &syn)?;
        assert_eq!((said, bytes), (Err(Reason::RejectRateLimited), syn));
        Ok(())
    })
}

#[test]
fn the_kernels_clock_is_told() -> Result<()> {
    in_namespace(|_| {
        let loaded = Loaded::new()?;
        let before = loaded.now()?;
        std::thread::sleep(Duration::from_millis(500));
        let passed = loaded.now()?.wrapping_sub(before);
        // HZ is 100 to 1000; a busy machine sleeps longer.
        assert!((50..5000).contains(&passed), "{passed} jiffies");
        Ok(())
    })
}

#[test]
fn frames_of_every_length_get_through() -> Result<()> {
    in_namespace(|network| {
        let mut loaded = Loaded::new()?;
        every_length::<V4>(&mut loaded, network)?;
        every_length::<V6>(&mut loaded, network)
    })
}

/// A frame truncated at any length, at every hook: kernel and library agree.
fn every_length<F: Maps>(loaded: &mut Loaded, network: &Network) -> Result<()> {
    let memory = generate::node_port_to::<F>(network, &[Remote::Pod]);
    let bytes = connect::<F>(1).bytes();
    let lengths =
        |hook| (generate::shortest(hook, &bytes)..=bytes.len()).map(move |len| (hook, len));
    for (hook, len) in Hook::ALL.into_iter().flat_map(lengths) {
        memory.opening.borrow_mut().clear();
        F::fill(loaded, &memory)?;
        let device = network.device(0);
        let said = differential::compare(loaded, &memory, hook, device, &bytes[..len])?;
        let cut_short = matches!(said, Err(Reason::Truncated | Reason::RewriteFailed));
        assert_eq!(said.is_err(), cut_short, "{hook:?}, {len} bytes: {said:?}");
    }
    Ok(())
}

/// The first packet of a client's connection to the nodePort.
fn connect<F: Net>(port: u16) -> Segment {
    Segment::new(
        Protocol::TCP,
        end::<F>((generate::CLIENT, port)),
        end::<F>((NODE, NODE_PORT)),
    )
    .flags(SYN)
}
