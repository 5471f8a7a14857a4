//! aya's marker for types that may be copied to and from maps as bytes.

use crate::net::{Addr4, Addr6};
use crate::{config, flow, net, node, policy, service, socket};

macro_rules! plain {
    ($($ty:ty),* $(,)?) => { $(
        // SAFETY: repr(C) or repr(transparent) over integers, without padding (the size is asserted
        // at the definition); any bytes are a value.
        unsafe impl aya::Pod for $ty {}
    )* };
}

/// Marks types with an address for both families.
macro_rules! plain_families {
    ($($module:ident::$ty:ident),* $(,)?) => {
        plain! { $($module::$ty<Addr4>, $module::$ty<Addr6>),* }
    };
}

plain! {
    Addr4, Addr6, net::IfIndex,
    node::AddressFlags, node::RangeKind, node::LocalPod, node::Veth, node::Device,
    service::Service, service::BackendKey, service::Name, service::MaglevKey, config::Config,
    policy::PodRows, policy::Row, policy::VerdictKey, policy::Word, policy::PortSet,
}

plain_families! {
    flow::FlowKey, flow::Flow, flow::FragmentKey,
    service::ServiceKey, service::Backend, service::EndpointKey, service::SourceKey,
    service::AffinityKey, service::Affinity,
    socket::PeerKey, socket::Peer,
}
