//! The counters of the packet path, read from the kernel at each scrape.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use proxy_common::reason;

use crate::dataplane::Maps;

/// Collects the counters from the maps.
pub struct PacketPath(Mutex<Maps>);

impl PacketPath {
    /// Reads these maps.
    pub fn new(maps: Maps) -> Self {
        Self(Mutex::new(maps))
    }
}

impl fmt::Debug for PacketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketPath")
    }
}

impl Collector for PacketPath {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .counters();
        let counters = counters.map_err(|error| {
            tracing::warn!("{error:#}");
            fmt::Error
        })?;
        encode(&mut encoder, &counters)
    }
}

/// These metrics with every counter at 0, without a kernel.
#[derive(Debug)]
pub struct Zeros;

impl Collector for Zeros {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        encode(&mut encoder, &[])
    }
}

/// Writes the counters, by their index in `COUNTERS`; those that are missing are 0.
fn encode(encoder: &mut DescriptorEncoder<'_>, counters: &[u64]) -> Result<(), fmt::Error> {
    let value =
        |index: u32| ConstCounter::new(counters.get(index as usize).copied().unwrap_or_default());
    let help = "Packets that were dropped, by reason";
    let mut drops = encoder.encode_descriptor("portway_drops", help, None, MetricType::Counter)?;
    for reason in reason::Reason::ALL {
        value(reason.index()).encode(drops.encode_family(&[("reason", reason.name())])?)?;
    }
    let help = "Other events that the packet path counts";
    let mut events =
        encoder.encode_descriptor("portway_events", help, None, MetricType::Counter)?;
    for counter in reason::Counter::ALL {
        value(counter.index()).encode(events.encode_family(&[("event", counter.name())])?)?;
    }
    Ok(())
}
