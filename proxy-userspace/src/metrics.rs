//! The metrics, under kube-proxy's names where the meaning is the same (V24), so that existing
//! dashboards work.

mod packet_path;
mod serve;
mod text;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::compile::NoLocalEndpoints;
use crate::dataplane::Maps;
use crate::ended::Ended;
use crate::model::{Connection, Family};

pub use serve::serve_metrics;
pub use text::{Exporter, Format};

type Labels = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, &'static str); 2];
type Latency = Labelled<Labels, Histogram, fn() -> Histogram>;
/// Seconds since 1970.
type Time = Gauge<f64, AtomicU64>;

/// The metrics that the agent counts. The packet path's counters are read at each scrape.
#[derive(Default)]
pub struct Metrics {
    kube_proxy: KubeProxy,
    failures: Counter,
    connected: Gauge,
    writes: Counter,
    flows: Labelled<TwoLabels, Gauge>,
    ended: Labelled<Labels, Counter>,
}

/// The metrics that kube-proxy has as well (V24).
struct KubeProxy {
    sync: Latency,
    sync_full: Latency,
    sync_partial: Latency,
    synced: Labelled<Labels, Time>,
    queued: Labelled<Labels, Time>,
    programming: Latency,
    endpoint_changes: Changes,
    service_changes: Changes,
    no_local_endpoints: Labelled<TwoLabels, Gauge>,
    healthz: Labelled<Labels, Counter>,
    livez: Labelled<Labels, Counter>,
}

/// Changes of one kind of object.
#[derive(Default)]
struct Changes {
    pending: Gauge,
    total: Counter,
}

/// The scope of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The kernel's maps as they are: the first sync, and those after a refused write.
    Full,
    /// The difference to the last sync.
    Partial,
}

/// The kinds of objects that kube-proxy counts changes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// EndpointSlices.
    Endpoints,
    /// Services.
    Services,
}

/// kube-proxy's buckets, and three finer ones before its first: our syncs are shorter.
fn sync_latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_125, 2.0, 18))
}

/// Returns kube-proxy's buckets, and finer ones before its first.
fn programming_latency() -> Histogram {
    let finer = [0.005, 0.01, 0.025, 0.05, 0.1].into_iter();
    let minute = [0.25, 0.5].into_iter().chain((1..60).map(f64::from));
    let more = (0..12)
        .map(|i| f64::from(60 + 5 * i))
        .chain((0..7).map(|i| f64::from(120 + 30 * i)));
    Histogram::new(finer.chain(minute).chain(more))
}

const CODES: [&str; 2] = ["200", "503"];

fn family(family: Family) -> Labels {
    [("ip_family", family.name())]
}

impl Default for KubeProxy {
    /// Makes every series, so that rates begin at zero.
    fn default() -> Self {
        let metrics = Self {
            sync: Labelled::new_with_constructor(sync_latency),
            sync_full: Labelled::new_with_constructor(sync_latency),
            sync_partial: Labelled::new_with_constructor(sync_latency),
            synced: Labelled::default(),
            queued: Labelled::default(),
            programming: Labelled::new_with_constructor(programming_latency),
            endpoint_changes: Changes::default(),
            service_changes: Changes::default(),
            no_local_endpoints: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        };
        for labels in Family::ALL.map(family) {
            for latency in [
                &metrics.sync,
                &metrics.sync_full,
                &metrics.sync_partial,
                &metrics.programming,
            ] {
                drop(latency.get_or_create(&labels));
            }
            for time in [&metrics.synced, &metrics.queued] {
                drop(time.get_or_create(&labels));
            }
        }
        for labels in CODES.map(|code| [("code", code)]) {
            drop(metrics.healthz.get_or_create(&labels));
            drop(metrics.livez.get_or_create(&labels));
        }
        metrics
    }
}

impl Metrics {
    /// Records a sync of both families: its duration, the time of its end, and its writes.
    pub fn synced(&self, pass: Pass, took: Duration, unix_seconds: f64, writes: usize) {
        let KubeProxy {
            sync,
            sync_full,
            sync_partial,
            synced,
            ..
        } = &self.kube_proxy;
        let by_pass = match pass {
            Pass::Full => sync_full,
            Pass::Partial => sync_partial,
        };
        for labels in Family::ALL.map(family) {
            sync.get_or_create(&labels).observe(took.as_secs_f64());
            by_pass.get_or_create(&labels).observe(took.as_secs_f64());
            synced.get_or_create(&labels).set(unix_seconds);
        }
        self.writes.inc_by(writes as u64);
    }

    /// Records the time at which a sync was requested.
    pub fn queued(&self, unix_seconds: f64) {
        for labels in Family::ALL.map(family) {
            self.kube_proxy
                .queued
                .get_or_create(&labels)
                .set(unix_seconds);
        }
    }

    /// Counts a change of an object of this kind that the source reported.
    pub fn changed(&self, kind: Counted) {
        self.changes(kind).total.inc();
    }

    /// Records the number of relevant changes that wait for the next sync.
    pub fn pending(&self, kind: Counted, changes: usize) {
        self.changes(kind)
            .pending
            .set(i64::try_from(changes).unwrap_or(i64::MAX));
    }

    fn changes(&self, kind: Counted) -> &Changes {
        match kind {
            Counted::Endpoints => &self.kube_proxy.endpoint_changes,
            Counted::Services => &self.kube_proxy.service_changes,
        }
    }

    /// Records that a change of endpoints is in force, `after` the time that its slice is dated.
    pub fn programmed(&self, of: Family, after: Duration) {
        self.kube_proxy
            .programming
            .get_or_create(&family(of))
            .observe(after.as_secs_f64());
    }

    /// Records the service ports with a Local policy that have backends, but none here.
    pub fn no_local_endpoints(&self, now: &NoLocalEndpoints) {
        for (policy, services) in [("internal", &now.internal), ("external", &now.external)] {
            for of in Family::ALL {
                let count = services.iter().filter(|(family, _)| *family == of).count();
                let labels = [("traffic_policy", policy), ("ip_family", of.name())];
                let gauge = self.kube_proxy.no_local_endpoints.get_or_create(&labels);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Counts an answer of `/healthz` with this status.
    pub fn healthz(&self, status: u16) {
        self.kube_proxy
            .healthz
            .get_or_create(&[("code", code(status))])
            .inc();
    }

    /// Counts an answer of `/livez` with this status.
    pub fn livez(&self, status: u16) {
        self.kube_proxy
            .livez
            .get_or_create(&[("code", code(status))])
            .inc();
    }

    /// Counts a write that the kernel refused.
    pub fn write_failed(&self) {
        self.failures.inc();
    }

    /// Records the connection to the source of objects.
    pub fn connection(&self, connection: &Connection) {
        self.connected.set(i64::from(*connection == Connection::Up));
    }

    /// Records the number of entries that a sweep met in a table.
    pub fn flows_in_use(&self, family: &'static str, table: &'static str, entries: u64) {
        let labels = [("family", family), ("table", table)];
        self.flows
            .get_or_create(&labels)
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// Counts a flow that a sweep ended.
    pub fn flow_ended(&self, why: Ended) {
        self.ended.get_or_create(&[("reason", why.name())]).inc();
    }

    /// So many half-open flows have been evicted by others since the agent began; less than before
    /// is not believed.
    pub fn flows_evicted(&self, total: u64) {
        let evicted = self
            .ended
            .get_or_create(&[("reason", Ended::Evicted.name())]);
        evicted.inc_by(total.saturating_sub(evicted.get()));
    }

    /// Returns the number of flows that have ended for a reason.
    pub fn ended(&self, why: Ended) -> u64 {
        self.ended.get_or_create(&[("reason", why.name())]).get()
    }

    /// Returns an exporter of these metrics and the packet path's.
    pub fn exporter(&self, maps: Maps) -> Exporter {
        let mut registry = self.registry();
        registry.register_collector(Box::new(packet_path::PacketPath::new(maps)));
        Exporter::new(registry)
    }

    /// Returns an exporter with the packet path's counters at 0, for the reference page: it needs
    /// no kernel.
    pub fn without_kernel(&self) -> Exporter {
        let mut registry = self.registry();
        registry.register_collector(Box::new(packet_path::Zeros));
        Exporter::new(registry)
    }

    /// Returns the registry of the metrics that the agent counts.
    fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        self.kube_proxy.register(&mut registry);
        let Self {
            kube_proxy: _,
            failures,
            connected,
            writes,
            flows,
            ended,
        } = self;
        registry.register(
            "portway_write_failures",
            "Writes to maps that the kernel refused",
            failures.clone(),
        );
        registry.register("portway_writes", "Writes to maps", writes.clone());
        registry.register(
            "portway_source_connected",
            "1 if the source of objects answers, else 0",
            connected.clone(),
        );
        registry.register(
            "portway_flows",
            "Entries of the flow tables at the last sweep, two for each connection",
            flows.clone(),
        );
        registry.register(
            "portway_flows_ended",
            "Flows that ended: by a sweep, or half-open ones by eviction from a full table",
            ended.clone(),
        );
        registry
    }
}

fn code(status: u16) -> &'static str {
    if status == 200 { CODES[0] } else { CODES[1] }
}

impl KubeProxy {
    fn register(&self, registry: &mut Registry) {
        let mut seconds = |name: &str, help: &str, metric: &Latency| {
            registry.register_with_unit(
                format!("kubeproxy_{name}"),
                help,
                Unit::Seconds,
                metric.clone(),
            );
        };
        seconds(
            "sync_proxy_rules_duration",
            "Duration of a sync, which updates the kernel's maps",
            &self.sync,
        );
        seconds(
            "sync_full_proxy_rules_duration",
            "Duration of a full sync, which reads the maps first",
            &self.sync_full,
        );
        seconds(
            "sync_partial_proxy_rules_duration",
            "Duration of a partial sync, which looks at changes only",
            &self.sync_partial,
        );
        let help = "Time from a change of endpoints, as dated by its controller, until it was in force on this node";
        seconds("network_programming_duration", help, &self.programming);
        let mut time = |name: &str, help: &str, metric: &Labelled<Labels, Time>| {
            registry.register_with_unit(
                format!("kubeproxy_{name}"),
                help,
                Unit::Seconds,
                metric.clone(),
            );
        };
        time(
            "sync_proxy_rules_last_timestamp",
            "Time of the last sync",
            &self.synced,
        );
        time(
            "sync_proxy_rules_last_queued_timestamp",
            "Time at which a sync was last requested",
            &self.queued,
        );
        for (kind, Changes { pending, total }) in [
            ("endpoint", &self.endpoint_changes),
            ("service", &self.service_changes),
        ] {
            let name = format!("kubeproxy_sync_proxy_rules_{kind}_changes");
            registry.register(
                format!("{name}_pending"),
                format!("Changes of {kind}s that are not in force yet"),
                pending.clone(),
            );
            registry.register(
                name,
                format!("Changes of {kind}s that the source reported"),
                total.clone(),
            );
        }
        let help =
            "Service ports with a Local traffic policy that have endpoints, but none on this node";
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        registry.register(name, help, self.no_local_endpoints.clone());
        registry.register(
            "kubeproxy_proxy_healthz",
            "Answers of /healthz by status",
            self.healthz.clone(),
        );
        registry.register(
            "kubeproxy_proxy_livez",
            "Answers of /livez by status",
            self.livez.clone(),
        );
    }
}

#[cfg(test)]
mod tests;
