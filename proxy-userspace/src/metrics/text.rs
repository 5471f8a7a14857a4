//! Metrics as text, in either of Prometheus' two formats.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4, which kube-proxy serves.
    Plain,
}

impl Format {
    /// Returns the format for a request with this header `Accept`, if it has one.
    pub fn accepted(accept: Option<&str>) -> Self {
        let open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Plain }
    }

    /// The header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Encodes metrics as text.
#[derive(Clone)]
pub struct Exporter {
    registry: Arc<Registry>,
}

impl Exporter {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry: Arc::new(registry),
        }
    }

    /// Encodes all metrics as they are now.
    ///
    /// # Errors
    /// If the packet path's counters cannot be read.
    pub fn text(&self, format: Format) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).context("encode metrics")?;
        Ok(if format == Format::Plain {
            plain(&text)
        } else {
            text
        })
    }
}

/// In the older format a counter's comments have its whole name, and there are neither units nor an
/// end.
fn plain(open: &str) -> String {
    let mut counters = open
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .peekable();
    let mut out = String::with_capacity(open.len());
    for line in open
        .lines()
        .filter(|line| *line != "# EOF" && !line.starts_with("# UNIT "))
    {
        // HELP comes before TYPE: both belong to the next counter, or neither does.
        let next = counters.peek().copied();
        let of_counter = |rest: &str| next.is_some_and(|name| rest.split(' ').next() == Some(name));
        let comment = ["# HELP ", "# TYPE "]
            .into_iter()
            .find_map(|word| Some((word, line.strip_prefix(word)?)));
        match comment {
            Some((word, rest)) if of_counter(rest) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                out.push_str(&format!("{word}{name}_total {rest}\n"));
                if word == "# TYPE " {
                    counters.next();
                }
            }
            _ => out.push_str(&format!("{line}\n")),
        }
    }
    out
}
