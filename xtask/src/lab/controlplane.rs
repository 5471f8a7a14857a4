//! A real Kubernetes control plane inside one network namespace: etcd, kube-apiserver and the
//! controllers that the lab needs. The lab plays the kubelet; it can start kube-proxy to compare
//! with.

mod arguments;
mod binaries;
mod client;
mod etcd;
mod kubeconfig;
mod kubelet;
mod object_ref;
mod pki;
mod plane;
mod process;
mod proxy;
mod wait;

pub use binaries::{Binaries, Program, version};
pub use client::{Client, Refused};
pub use kubelet::{Kubelet, NodeSpec, PodSpec, Readiness, pending_pods};
pub use object_ref::ObjectRef;
pub use plane::{ControlPlane, ControlPlaneSpec, User};
pub use proxy::{KubeProxy, ProxySpec};
pub use wait::wait_for;
