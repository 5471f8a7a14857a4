//! The names and types that existing dashboards ask for, and that both texts are what their formats
//! say.

use std::collections::BTreeMap;

use super::*;

/// Metrics of kube-proxy 1.36 in nftables mode (pkg/proxy/metrics), without those about nftables
/// and conntrack.
const KUBE_PROXY: &str = "
kubeproxy_network_programming_duration_seconds histogram ip_family
kubeproxy_proxy_healthz_total counter code
kubeproxy_proxy_livez_total counter code
kubeproxy_sync_full_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_partial_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_proxy_rules_endpoint_changes_pending gauge
kubeproxy_sync_proxy_rules_endpoint_changes_total counter
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge ip_family
kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge ip_family
kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge traffic_policy,ip_family
kubeproxy_sync_proxy_rules_service_changes_pending gauge
kubeproxy_sync_proxy_rules_service_changes_total counter
";

/// A metric of a text: its type, the names of its labels, and its samples.
#[derive(Default)]
struct Read {
    kind: String,
    labels: Vec<String>,
    samples: Vec<(String, f64)>,
}

/// Reads the text format 0.0.4 as strictly as promtool: each sample belongs to the TYPE before it,
/// and is a number.
fn read(text: &str) -> BTreeMap<String, Read> {
    let mut metrics: BTreeMap<String, Read> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            current = name.to_owned();
            let before = metrics.insert(
                current.clone(),
                Read {
                    kind: kind.to_owned(),
                    ..Read::default()
                },
            );
            assert!(before.is_none(), "{name} twice");
        } else if let Some(rest) = line.strip_prefix("# ") {
            assert!(rest.starts_with("HELP "), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let metric = metrics.get_mut(&current).expect("a TYPE before the sample");
            let suffix = name
                .strip_prefix(&*current)
                .expect("a sample of the TYPE before it");
            let known: &[&str] = if metric.kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(known.contains(&suffix), "{line}");
            let labels = labels
                .strip_suffix('}')
                .expect("closed")
                .split(',')
                .filter(|label| !label.is_empty());
            let names = labels.map(|label| {
                label
                    .split_once("=\"")
                    .expect("a label and its value")
                    .0
                    .to_owned()
            });
            metric.labels = names.filter(|name| name != "le").collect();
            metric
                .samples
                .push((series.to_owned(), value.parse().expect("a number")));
        }
    }
    metrics
}

fn metrics() -> Metrics {
    let metrics = Metrics::default();
    metrics.no_local_endpoints(&NoLocalEndpoints::default());
    metrics
}

fn plain(metrics: &Metrics) -> BTreeMap<String, Read> {
    read(
        &Exporter::new(metrics.registry())
            .text(Format::Plain)
            .expect("a text"),
    )
}

#[test]
fn v24_names_types_and_labels_are_kube_proxys_from_the_start() {
    let read = plain(&metrics());
    let ours = read
        .iter()
        .filter(|(name, _)| name.starts_with("kubeproxy_"));
    assert_eq!(
        ours.map(|(name, read): (&String, &Read)| {
            format!("{name} {} {}", read.kind, read.labels.join(","))
                .trim_end()
                .to_owned()
        })
        .collect::<Vec<_>>(),
        KUBE_PROXY.trim().lines().collect::<Vec<_>>()
    );
    assert!(
        read.values()
            .filter(|read| read.kind == "histogram")
            .all(|read| read.labels == ["ip_family"])
    );
}

#[test]
fn v24_kube_proxys_buckets_are_among_ours() {
    let read = plain(&metrics());
    let bounds = |name: &str| -> Vec<f64> {
        let series = read[name]
            .samples
            .iter()
            .filter(|(series, _)| series.contains("IPv4"));
        series
            .filter_map(|(series, _)| {
                series
                    .split_once("le=\"")?
                    .1
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect()
    };
    let sync = bounds("kubeproxy_sync_proxy_rules_duration_seconds");
    for bucket in exponential_buckets(0.001, 2.0, 15) {
        assert!(
            sync.iter()
                .any(|bound| (bound - bucket).abs() < bucket * 1e-9),
            "{bucket} of {sync:?}"
        );
    }
    let programming = bounds("kubeproxy_network_programming_duration_seconds");
    for bucket in [0.25, 0.5, 1.0, 59.0, 60.0, 115.0, 120.0, 300.0] {
        assert!(programming.contains(&bucket), "{bucket} of {programming:?}");
    }
    assert!(programming.is_sorted(), "{programming:?}");
}

#[test]
fn what_happens_is_counted() {
    let metrics = metrics();
    metrics.synced(Pass::Full, Duration::from_millis(3), 1234.5, 7);
    metrics.synced(Pass::Partial, Duration::from_millis(1), 1235.5, 1);
    metrics.changed(Counted::Services);
    metrics.pending(Counted::Endpoints, 2);
    metrics.programmed(Family::V6, Duration::from_millis(40));
    [200, 200, 503]
        .into_iter()
        .for_each(|status| metrics.healthz(status));
    let here = [(Family::V4, "shop/web:http".into())];
    metrics.no_local_endpoints(&NoLocalEndpoints {
        external: here.into(),
        ..NoLocalEndpoints::default()
    });
    let read = plain(&metrics);
    let value = |series: &str| {
        let all = read.values().flat_map(|read| &read.samples);
        all.clone()
            .find(|(name, _)| name == series)
            .unwrap_or_else(|| panic!("no {series}"))
            .1
    };
    for (series, expected) in [
        (
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
            2.0,
        ),
        (
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
            1.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}",
            1235.5,
        ),
        ("kubeproxy_sync_proxy_rules_service_changes_total", 1.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 2.0),
        (
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.05\",ip_family=\"IPv6\"}",
            1.0,
        ),
        (
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}",
            0.0,
        ),
        ("kubeproxy_proxy_healthz_total{code=\"200\"}", 2.0),
        ("kubeproxy_proxy_healthz_total{code=\"503\"}", 1.0),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"}",
            1.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"}",
            0.0,
        ),
        ("portway_writes_total", 8.0),
    ] {
        assert_eq!(value(series), expected, "{series}");
    }
}

#[test]
fn who_asks_for_openmetrics_gets_it() {
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    assert_eq!(
        [Some(prometheus), Some("*/*"), None].map(Format::accepted),
        [Format::OpenMetrics, Format::Plain, Format::Plain]
    );
    let text = Exporter::new(metrics().registry())
        .text(Format::OpenMetrics)
        .expect("a text");
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE kubeproxy_proxy_healthz counter\n"));
}
