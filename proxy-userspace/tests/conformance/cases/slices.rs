//! Cases of EndpointSlices, and of the service ports and endpoints that they make.

use super::*;

/// Keys that identify files like `slices.json`, which have at least one of them.
pub const OF_SLICES: [&str; 10] = [
    "endpoint_maps",
    "slice_updates",
    "endpoint_updates",
    "slice_changes",
    "cache_cleanup",
    "trigger_times",
    "local_ready_ips",
    "service_ports",
    "service_updates",
    "service_cidrs",
];

/// `slices.json`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SliceFile {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "source")]
    _source: String,
    pub endpoint_maps: Vec<EventCase>,
    pub slice_updates: Vec<EventCase>,
    pub endpoint_updates: Vec<EventCase>,
    pub slice_changes: Vec<EventCase>,
    pub cache_cleanup: Vec<EventCase>,
    pub trigger_times: Vec<EventCase>,
    pub local_ready_ips: Vec<ReadyCase>,
    pub service_ports: Vec<ServiceCase>,
    pub service_updates: Vec<EventCase>,
    pub service_cidrs: Vec<RangeCase>,
}

/// Objects that change, step by step.
#[derive(Deserialize)]
pub struct EventCase {
    pub name: String,
    pub config: Place,
    pub steps: Vec<EventStep>,
    #[serde(default)]
    advisory: bool,
}

impl EventCase {
    pub fn weight(&self) -> Weight {
        weight(self.advisory)
    }
}

#[derive(Deserialize)]
pub struct EventStep {
    #[serde(default, deserialize_with = "nullable")]
    pub events: Vec<Event>,
    #[serde(default, deserialize_with = "nullable")]
    pub expect: EventExpect,
}

/// The expected state after a step; absent fields are not checked.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventExpect {
    /// `namespace/name`; the expectation is limited to its endpoints.
    pub service: Option<String>,
    pub endpoints: Option<BTreeMap<String, Vec<KnownEndpoint>>>,
    pub changed: Option<bool>,
    pub udp_cleanup_needed: Option<bool>,
    pub local_ready_endpoints: Option<BTreeMap<String, usize>>,
    pub changed_services: Option<Vec<String>>,
    pub services_tracked: Option<usize>,
    pub pending_services: Option<usize>,
    pub change_trigger_times: Option<BTreeMap<String, Vec<Timestamp>>>,
    pub service_ports: Option<Vec<String>>,
    pub health_check_node_ports: Option<BTreeMap<String, u16>>,
    pub updated_services: Option<Vec<String>>,
}

/// An endpoint; absent conditions are not checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownEndpoint {
    pub endpoint: SocketAddr,
    pub local: bool,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// The cluster's Service ranges, step by step.
#[derive(Deserialize)]
pub struct RangeCase {
    pub name: String,
    pub config: Place,
    pub steps: Vec<RangeStep>,
}

#[derive(Deserialize)]
pub struct RangeStep {
    #[serde(deserialize_with = "nullable")]
    pub service_cidrs: Vec<String>,
    pub expect: RangeExpect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeExpect {
    #[serde(deserialize_with = "nullable")]
    pub service_cidrs: Vec<String>,
}

/// Endpoints by service port, and the local ready ones by Service.
#[derive(Deserialize)]
pub struct ReadyCase {
    pub name: String,
    pub endpoints: BTreeMap<String, Vec<KnownEndpoint>>,
    pub expect: ReadyExpect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyExpect {
    pub local_ready_ips: BTreeMap<String, Vec<IpAddr>>,
}

/// A Service and its ports.
#[derive(Deserialize)]
pub struct ServiceCase {
    pub name: String,
    pub config: Place,
    pub object: Option<Value>,
    pub expect: ServiceExpect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceExpect {
    pub service_ports: BTreeMap<String, PortExpect>,
}

/// The expected state of a service port.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortExpect {
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub protocol: String,
    pub health_check_node_port: u16,
    #[serde(deserialize_with = "nullable")]
    pub external_ips: Vec<IpAddr>,
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_ips: Vec<IpAddr>,
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
}
