//! aya's marker for what may be copied to and from maps as bytes.

use crate::{flow, net, policy, service, socket};

macro_rules! plain {
    ($($ty:ty),* $(,)?) => { $(
        // SAFETY: repr(C) or repr(transparent) over integers, without padding (the size is asserted at the definition); any bytes are a value.
        unsafe impl aya::Pod for $ty {}
    )* };
}

plain! {
    net::Addr4, net::Addr6, net::AddressFlags, net::RangeKind, net::IfIndex, net::LocalPod, net::Veth, net::Device,
    flow::FlowKey<net::Addr4>, flow::FlowKey<net::Addr6>, flow::Flow<net::Addr4>, flow::Flow<net::Addr6>,
    service::ServiceKey<net::Addr4>, service::ServiceKey<net::Addr6>, service::Service, service::BackendKey,
    service::Backend<net::Addr4>, service::Backend<net::Addr6>, service::EndpointKey<net::Addr4>, service::EndpointKey<net::Addr6>,
    service::SourceKey<net::Addr4>, service::SourceKey<net::Addr6>, service::AffinityKey<net::Addr4>, service::AffinityKey<net::Addr6>,
    service::Affinity<net::Addr4>, service::Affinity<net::Addr6>, service::Name, service::Config, service::MaglevKey,
    socket::PeerKey<net::Addr4>, socket::PeerKey<net::Addr6>, socket::Peer<net::Addr4>, socket::Peer<net::Addr6>,
    policy::PodRows, policy::Row, policy::VerdictKey, policy::Word, policy::PortSet, flow::FragmentKey<net::Addr4>, flow::FragmentKey<net::Addr6>,
}
