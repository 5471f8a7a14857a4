//! Cases of health check servers.

use super::*;

/// `health.json`.
#[derive(Deserialize)]
pub struct HealthFile {
    #[serde(default)]
    pub service_health: Vec<ServiceHealthCase>,
    #[serde(default)]
    pub proxy_health: Vec<ProxyHealthCase>,
    #[serde(default)]
    pub local_ready_endpoints: Vec<EventCase>,
}

/// The servers of healthCheckNodePorts, step by step.
#[derive(Deserialize)]
pub struct ServiceHealthCase {
    pub name: String,
    pub config: ServiceHealthConfig,
    pub steps: Vec<ServiceHealthStep>,
}

#[derive(Deserialize)]
pub struct ServiceHealthConfig {
    #[serde(deserialize_with = "nullable")]
    pub nodeport_addresses: Vec<String>,
}

/// A change, and the expected state after it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceHealthStep {
    pub set_health_ports: Option<BTreeMap<String, u16>>,
    pub set_local_endpoints: Option<BTreeMap<String, usize>>,
    pub set_proxy_healthy: Option<bool>,
    pub expect_services: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    pub expect_listening: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub requests: Vec<ServiceRequest>,
}

#[derive(Deserialize)]
pub struct ServiceRequest {
    pub service: String,
    #[serde(flatten)]
    pub asked: Asked,
}

/// A request and its answer.
#[derive(Deserialize)]
pub struct Asked {
    pub path: String,
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

/// `/healthz` and `/livez`, step by step.
#[derive(Deserialize)]
pub struct ProxyHealthCase {
    pub name: String,
    pub config: ProxyHealthConfig,
    pub steps: Vec<ProxyHealthStep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyHealthConfig {
    pub timeout_seconds: u64,
    #[serde(default)]
    pub node: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyHealthStep {
    #[serde(default, deserialize_with = "nullable")]
    pub events: Vec<BTreeMap<String, Value>>,
    pub request: Asked,
}
