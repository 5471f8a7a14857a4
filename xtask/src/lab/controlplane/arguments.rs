//! Owns the command lines of etcd, kube-apiserver and kube-controller-manager.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::etcd::ETCD;
use super::pki::Pki;

/// The controllers of kube-controller-manager that the lab needs: slices for Services, pods for
/// Deployments and DaemonSets, and garbage collection.
const CONTROLLERS: [&str; 7] = [
    "endpointslice-controller",
    "daemonset-controller",
    "deployment-controller",
    "replicaset-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
];

/// The API server's address, and the ranges of ClusterIPs.
#[derive(Debug, Clone, Copy)]
pub struct Serving<'a> {
    /// The address at which agents reach it.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The ranges of ClusterIPs, the primary family first.
    pub service_ranges: &'a [IpNet],
}

/// Returns the arguments of etcd, which keeps its data below `dir`.
pub fn etcd_args(dir: &Path) -> Vec<String> {
    let peers = "http://127.0.0.1:2380";
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        // A crash may lose the data: it is only a lab.
        "--unsafe-no-fsync".to_owned(),
        "--heartbeat-interval=100".to_owned(),
    ]
}

/// Returns the arguments of kube-apiserver, which keeps its users and certificates in `dir`.
pub fn apiserver_args(serving: &Serving, pki: &Pki, dir: &Path) -> Vec<String> {
    let ranges: Vec<String> = serving
        .service_ranges
        .iter()
        .map(IpNet::to_string)
        .collect();
    vec![
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={}", serving.address),
        format!("--secure-port={}", serving.port),
        format!("--service-cluster-ip-range={}", ranges.join(",")),
        format!("--tls-cert-file={}", pki.serving_cert.display()),
        format!("--tls-private-key-file={}", pki.serving_key.display()),
        format!(
            "--service-account-key-file={}",
            pki.accounts_public.display()
        ),
        format!(
            "--service-account-signing-key-file={}",
            pki.accounts_key.display()
        ),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--token-auth-file={}", dir.join("tokens.csv").display()),
        format!("--cert-dir={}", dir.display()),
        "--authorization-mode=RBAC".to_owned(),
        "--allow-privileged".to_owned(),
        // Pods need no account's token here, and nodes no taints: nothing is scheduled.
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
        "--enable-priority-and-fairness=false".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// Returns the arguments of kube-controller-manager, which connects with `kubeconfig`.
pub fn manager_args(kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--controllers={}", CONTROLLERS.join(",")),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=1000".to_owned(),
        "--endpointslice-updates-batch-period=0s".to_owned(),
        "--concurrent-service-endpoint-syncs=5".to_owned(),
    ]
}
