//! What is counted, under kube-proxy's names where the meaning is the same (V24), so that existing dashboards work.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use proxy_common::event;

use crate::dataplane::Maps;
use crate::flows::Ended;
use crate::model::Connection;

type Labels = [(&'static str, &'static str); 1];
type TwoLabels = [(&'static str, &'static str); 2];

/// What the agent counts; the packet path's counters are read when somebody asks.
#[derive(Default)]
pub struct Metrics {
    sync: SyncDuration,
    synced: Gauge,
    failures: Counter,
    connected: Gauge,
    writes: Counter,
    flows: Family<TwoLabels, Gauge>,
    ended: Family<Labels, Counter>,
}

struct SyncDuration(Histogram);

impl Default for SyncDuration {
    /// From 0.1 ms on: ours are shorter than kube-proxy's.
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.0001, 2.0, 18)))
    }
}

impl Metrics {
    /// A sync took this long, ended at this time, and made that many writes.
    pub fn synced(&self, took: Duration, unix_seconds: i64, writes: usize) {
        self.sync.0.observe(took.as_secs_f64());
        self.synced.set(unix_seconds);
        self.writes.inc_by(writes as u64);
    }

    /// The kernel refused a write.
    pub fn write_failed(&self) {
        self.failures.inc();
    }

    /// Whether the source of objects answers.
    pub fn connection(&self, connection: &Connection) {
        self.connected.set(i64::from(*connection == Connection::Up));
    }

    /// A sweep met this many entries in a table.
    pub fn flows_in_use(&self, family: &'static str, table: &'static str, entries: u64) {
        let labels = [("family", family), ("table", table)];
        self.flows.get_or_create(&labels).set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// A sweep ended a flow.
    pub fn flow_ended(&self, why: Ended) {
        self.ended.get_or_create(&[("reason", why.name())]).inc();
    }

    /// All of these and the packet path's, in Prometheus' text format.
    pub fn exporter(&self, maps: Maps) -> Exporter {
        let mut registry = Registry::default();
        let Self { sync, synced, failures, connected, writes, flows, ended } = self;
        let help = "Latency of bringing the kernel's maps in step with what is known";
        registry.register_with_unit("kubeproxy_sync_proxy_rules_duration", help, Unit::Seconds, sync.0.clone());
        let help = "When the maps were last brought in step";
        registry.register_with_unit("kubeproxy_sync_proxy_rules_last_timestamp", help, Unit::Seconds, synced.clone());
        registry.register("portway_write_failures", "Writes to maps that the kernel refused", failures.clone());
        registry.register("portway_writes", "Writes to maps", writes.clone());
        registry.register("portway_source_connected", "Whether the source of objects answers", connected.clone());
        registry.register(
            "portway_flows",
            "Entries of the flow tables at the last sweep, two for each connection",
            flows.clone(),
        );
        registry.register("portway_flows_ended", "Flows that a sweep ended", ended.clone());
        registry.register_collector(Box::new(PacketPath(Mutex::new(maps))));
        Exporter { registry: Arc::new(registry) }
    }
}

/// Writes metrics down.
#[derive(Clone)]
pub struct Exporter {
    registry: Arc<Registry>,
}

impl Exporter {
    /// Everything as of now.
    pub fn text(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).context("encode metrics")?;
        Ok(text)
    }
}

/// The counters that lie in the kernel.
struct PacketPath(Mutex<Maps>);

impl fmt::Debug for PacketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketPath")
    }
}

impl Collector for PacketPath {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner).counters();
        let counters = counters.map_err(|error| {
            tracing::warn!("{error:#}");
            fmt::Error
        })?;
        let value = |index: u32| ConstCounter::new(counters.get(index as usize).copied().unwrap_or_default());
        let help = "Packets that were dropped, by reason";
        let mut drops = encoder.encode_descriptor("portway_drops", help, None, MetricType::Counter)?;
        for reason in event::Reason::ALL {
            value(reason.index()).encode(drops.encode_family(&[("reason", reason.name())])?)?;
        }
        let help = "What else the packet path counts";
        let mut events = encoder.encode_descriptor("portway_events", help, None, MetricType::Counter)?;
        for counter in event::Counter::ALL {
            value(counter.index()).encode(events.encode_family(&[("event", counter.name())])?)?;
        }
        Ok(())
    }
}
