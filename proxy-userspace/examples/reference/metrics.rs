//! Owns the page of metrics.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use portway::compile::NoLocalEndpoints;
use portway::ended::Ended;
use portway::metrics::{Format, Metrics};

use super::table::{code, table};

pub const INTRODUCTION: &str = "\
The agent serves them at `/metrics` of `--metrics-bind` (by default 127.0.0.1:10249), in the text
format 0.0.4 or as OpenMetrics, as the scraper asks. Metrics that kube-proxy has with the same
meaning have its names (rule V24). The reasons and events are listed in [reasons.md](reasons.md).";

#[derive(Default)]
struct Metric {
    help: String,
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// Returns the table.
pub fn body() -> Result<String> {
    let text = all_series()?;
    let mut metrics: BTreeMap<&str, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = comment(line, "# HELP ") {
            metrics.entry(name).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = comment(line, "# TYPE ") {
            metrics.entry(name).or_default().kind = kind.to_owned();
        } else {
            let name = series(line);
            let (_, metric) = metrics
                .range_mut(..=name)
                .next_back()
                .filter(|(known, _)| name.starts_with(*known))
                .with_context(|| format!("find the metric of {line}"))?;
            for (label, value) in labels(line) {
                metric
                    .labels
                    .entry(label.to_owned())
                    .or_default()
                    .insert(value.to_owned());
            }
        }
    }
    let rows = metrics.into_iter().map(|(name, metric)| {
        let labels: Vec<String> = metric.labels.iter().map(label).collect();
        [code(name), metric.kind, labels.join("<br>"), metric.help]
    });
    Ok(table(["Metric", "Type", "Labels", "Meaning"], rows))
}

/// Returns what an agent serves that has met everything once.
fn all_series() -> Result<String> {
    let metrics = Metrics::default();
    metrics.no_local_endpoints(&NoLocalEndpoints::default());
    for family in ["ipv4", "ipv6"] {
        for table in ["established", "opening"] {
            metrics.flows_in_use(family, table, 0);
        }
    }
    Ended::ALL.iter().for_each(|why| metrics.flow_ended(*why));
    metrics.without_kernel().text(Format::Plain)
}

fn comment<'a>(line: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(word)?.split_once(' ')
}

fn series(line: &str) -> &str {
    line.split(['{', ' ']).next().unwrap_or_default()
}

fn labels(line: &str) -> Vec<(&str, &str)> {
    let Some((_, rest)) = line.split_once('{') else {
        return Vec::new();
    };
    let inside = rest.split('}').next().unwrap_or_default();
    inside
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .filter(|(name, _)| *name != "le")
        .collect()
}

/// Returns a label and its values, which are left out where another page lists them.
fn label((name, values): (&String, &BTreeSet<String>)) -> String {
    let values: Vec<String> = values.iter().map(|value| code(value)).collect();
    if values.len() > 8 {
        code(name)
    } else {
        format!("{}: {}", code(name), values.join(", "))
    }
}
