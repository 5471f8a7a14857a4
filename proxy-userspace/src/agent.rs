//! `portway agent`: starts the tasks, joins them by channels, and ends without taking anything out
//! of the kernel.

mod args;

use std::future::pending;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use proxy_common::net::IfIndex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::args::{Output, StateDirArg};
use crate::cli::print::PinArgs;
use crate::cli::status;
use crate::cni;
use crate::dataplane::{Clock, Dataplane, Options, StateDir, XdpChoice, hz};
use crate::flows::{self, SweepRules};
use crate::gate;
use crate::health::{Vitals, serve_health, serve_services};
use crate::links::{self, Wanted};
use crate::metrics::{Exporter, Metrics, serve_metrics};
use crate::model::{ForwardFirewall, Settings, Snapshot, TranslatedWay};
use crate::other_dataplanes;
use crate::place::Actual;
use crate::place::policies::Room;
use crate::shadow;
use crate::source;
use crate::sync::{Audience, Inputs, Outputs, Reports, Sync};

pub use args::{AgentArgs, AgentSettings, Bind, TableSize, Xdp};

/// Capacity of the queue of denials that wait to be logged.
const DENIALS: usize = 1024;
/// Pause before a failed listening address is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Serves the Services on this node until SIGTERM or SIGINT, or just until the kernel is in step.
///
/// # Errors
/// On faults that waiting does not mend: a program that the verifier refuses, a state directory of
/// another agent, an absent kubeconfig.
pub async fn run(settings: AgentSettings) -> Result<()> {
    let AgentSettings {
        source,
        service,
        devices,
        state_dir,
        cni_results,
        cgroup,
        policy_tables,
        xdp,
        once,
        health_bind,
        metrics_bind,
    } = settings;
    // First what may be a slip of the pen: a kubeconfig that is not there is no reason to load
    // anything.
    let events = source::events(&source, &service.node_name).await?;
    let updates = source::spawn(source).await?;
    let options = Options {
        state_dir: state_dir.clone(),
        xdp: choice(xdp),
        cgroup,
    };
    let mut plane = Dataplane::open_sized(&options, room(policy_tables))?;
    let actual = plane.read()?;
    let service = Settings {
        forward_firewall: look_around(&state_dir),
        ..complete(service, &actual)?
    };
    log_translated_way(&service);
    let metrics = Arc::new(Metrics::default());
    let (serving_tx, serving) = watch::channel(None);
    let (vitals_tx, vitals) = watch::channel(Vitals::starting(Instant::now()));
    let (wanted_tx, wanted) = watch::channel(Wanted {
        devices,
        ..Wanted::default()
    });
    let (found_tx, found) = watch::channel(None);
    let mut tasks = JoinSet::new();
    let rules = SweepRules {
        timeouts: service.timeouts,
        hz: service.hz,
        serving: None,
        dsr: SweepRules::DSR,
    };
    let clock = Clock::from_pins(&StateDir::at(&state_dir))?;
    let (departed_tx, departed) = mpsc::unbounded_channel();
    let sweep = flows::run(
        plane.open_maps()?,
        clock,
        rules,
        serving,
        departed,
        metrics.clone(),
    );
    tasks.spawn(async {
        sweep.await;
        Ok(())
    });
    let loads_only = once.is_some();
    let status = status_once(once, vitals.clone(), state_dir);
    tasks.spawn(links::run(wanted, found_tx, known_pods(&actual)));
    if let Some(bind) = health_bind {
        tasks.spawn(keep_health(bind, vitals.clone(), metrics.clone()));
    }
    if let Some(bind) = metrics_bind {
        tasks.spawn(keep_metrics(bind, metrics.exporter(plane.open_maps()?)));
    }
    if let Some(log) = plane.take_log() {
        tasks.spawn(log.run());
    }
    let (cni_pods_tx, cni_pods) = watch::channel(cni::CniPods::new());
    tasks.spawn(cni::run(cni_results, cni_pods_tx));
    let (denied_tx, denied) = mpsc::channel(DENIALS);
    if let Some(denials) = plane.take_denials() {
        tasks.spawn(denials.run(denied_tx));
    }
    let (reports, Audience { checks, node_ports }) =
        Reports::new(events.clone(), metrics.clone(), Timestamp::now());
    tasks.spawn(serve_services(checks, vitals, events.clone()));
    tasks.spawn(shadow::run(node_ports, events));
    let gate = keep_gate(&mut tasks, loads_only);
    let outputs = Outputs {
        wanted: wanted_tx,
        serving: serving_tx,
        departed: departed_tx,
        vitals: vitals_tx,
        gate,
        reports,
        metrics,
    };
    let sync = Sync::new(
        Snapshot {
            settings: service,
            ..Snapshot::default()
        },
        plane,
        actual,
        outputs,
    );
    tasks.spawn(sync.run(Inputs {
        updates,
        found,
        cni_pods,
        denied,
    }));
    tokio::select! {
        ended = until_signal(&mut tasks) => ended,
        status = status => status.map(|text| print!("{text}")),
    }
}

fn log_translated_way(service: &Settings) {
    if service.translated_way() == TranslatedWay::Stack {
        info!(
            "translated packets go through this host's stack and its firewall rules for forwarded packets; \
             so --forwarding=dsr has no effect: replies go through this node"
        );
    }
}

/// Starts the task that keeps the gate (V21) and returns its sender. With --once nothing is
/// started, and nobody receives.
fn keep_gate(
    tasks: &mut JoinSet<Result<()>>,
    loads_only: bool,
) -> watch::Sender<Option<gate::GateSpec>> {
    let (gate, specs) = watch::channel(None);
    if !loads_only {
        tasks.spawn(gate::run(specs));
    }
    gate
}

/// Returns the status, once the kernel is in step; never returns without `--once`.
async fn status_once(
    output: Option<Output>,
    mut vitals: watch::Receiver<Vitals>,
    state_dir: PathBuf,
) -> Result<String> {
    let Some(output) = output else {
        return pending().await;
    };
    if vitals.wait_for(|vitals| vitals.in_step).await.is_err() {
        // `sync` has ended; `until_signal` returns its error.
        return pending().await;
    }
    status::run(&PinArgs {
        pins: StateDirArg { state_dir },
        output,
    })
}

/// Waits for a signal, or for a task that ends although it should not.
async fn until_signal(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => info!("received SIGTERM; attached programs keep forwarding"),
        _ = interrupt.recv() => info!("received SIGINT; attached programs keep forwarding"),
        Some(ended) = tasks.join_next() => {
            ended.context("a task panicked")??;
            anyhow::bail!("a task ended unexpectedly");
        }
    }
    Ok(())
}

/// Completes the settings with facts that only the running kernel has, and with the hash's key,
/// which stays the same over restarts.
fn complete(settings: Settings, actual: &Actual) -> Result<Settings> {
    let kept = actual.config().secret;
    let secret = if kept == 0 {
        RandomState::new().hash_one(std::process::id())
    } else {
        kept
    };
    Ok(Settings {
        secret,
        hz: hz()?,
        ..settings
    })
}

/// Looks for other data planes: they pin their objects beside the state directory.
fn look_around(state_dir: &Path) -> ForwardFirewall {
    other_dataplanes::report(&other_dataplanes::find(
        state_dir.parent().unwrap_or(state_dir),
    ))
}

fn known_pods(actual: &Actual) -> std::collections::BTreeMap<IpAddr, IfIndex> {
    let known = actual
        .pods()
        .iter()
        .filter(|(_, pod)| pod.device != IfIndex::NONE);
    known.map(|(addr, pod)| (*addr, pod.device)).collect()
}

fn room(size: TableSize) -> Room {
    match size {
        TableSize::Small => Room::default(),
        TableSize::Large => Room::LARGE,
    }
}

fn choice(xdp: Xdp) -> XdpChoice {
    match xdp {
        Xdp::Auto => XdpChoice::Auto,
        Xdp::Native => XdpChoice::Native,
        Xdp::Generic => XdpChoice::Generic,
        Xdp::Off => XdpChoice::Off,
    }
}

/// Serves health checks. An address that is in use is tried again; forwarding goes on meanwhile.
async fn keep_health(
    bind: SocketAddr,
    vitals: watch::Receiver<Vitals>,
    metrics: Arc<Metrics>,
) -> Result<()> {
    loop {
        log_refusal(
            "health",
            serve_health(bind, vitals.clone(), metrics.clone()).await,
        );
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn keep_metrics(bind: SocketAddr, exporter: Exporter) -> Result<()> {
    loop {
        log_refusal("metrics", serve_metrics(bind, exporter.clone()).await);
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

fn log_refusal(what: &str, result: Result<()>) {
    if let Err(error) = result {
        warn!(
            error = format!("{error:#}"),
            "cannot serve {what}; trying again"
        );
    }
}
