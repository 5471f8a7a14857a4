//! Requests to the kernel over rtnetlink, and its notifications.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt as _, TryStreamExt as _};
use proxy_common::net::IfIndex;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::task::AbortHandle;

use super::facts::{Facts, HostAddress, Link, Mac, Neighbour, Route};

/// The netlink groups to subscribe to.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// True if changes of neighbours count: they come all the time, and matter only while a pod's
/// device is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    Heeded,
    Ignored,
}

/// Two sockets: one for requests, one for notifications.
pub struct Netlink {
    handle: Handle,
    news: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    tasks: [AbortHandle; 2],
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Netlink {
    /// Opens sockets in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let (asking, handle, _) = new_connection().context("open a netlink socket")?;
        let (listening, _, news) =
            new_multicast_connection(&GROUPS).context("subscribe to netlink groups")?;
        let tasks = [
            tokio::spawn(asking).abort_handle(),
            tokio::spawn(listening).abort_handle(),
        ];
        Ok(Self {
            handle,
            news,
            tasks,
        })
    }

    /// Waits until something has changed.
    pub async fn news(&mut self, neighbours: Neighbours) -> Result<()> {
        loop {
            let Some((message, _)) = self.news.next().await else {
                bail!("the kernel closed the netlink socket")
            };
            let of_neighbours = matches!(
                message.payload,
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_)
                )
            );
            if !of_neighbours || neighbours == Neighbours::Heeded {
                return Ok(());
            }
        }
    }

    /// All links, addresses and unicast routes of the main table; one dump after the other, since a
    /// socket can have one at a time.
    pub async fn read(&self) -> Result<Facts> {
        let links = self
            .handle
            .link()
            .get()
            .execute()
            .map_ok(|m| Link::from_message(&m));
        let links = links.try_collect().await.context("list links")?;
        let addresses = self
            .handle
            .address()
            .get()
            .execute()
            .map_ok(|m| HostAddress::from_message(&m));
        let addresses: Vec<_> = addresses.try_collect().await.context("list addresses")?;
        let routes = [
            self.routes(AddressFamily::Inet).await?,
            self.routes(AddressFamily::Inet6).await?,
        ]
        .concat();
        Ok(Facts {
            links,
            addresses: addresses.into_iter().flatten().collect(),
            routes,
        })
    }

    async fn routes(&self, family: AddressFamily) -> Result<Vec<Route>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let routes = self
            .handle
            .route()
            .get(question)
            .execute()
            .map_ok(|m| Route::from_message(&m));
        Ok(routes
            .try_collect::<Vec<_>>()
            .await
            .with_context(|| format!("list {family:?} routes"))?
            .concat())
    }

    /// The device that packets to `addr` leave by, if it is on a link of this host: neither local
    /// nor behind a gateway.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the list of netlink's attributes is open"
    )]
    pub async fn link_to(&self, addr: IpAddr) -> Option<IfIndex> {
        let mut question = RouteMessage::default();
        question.header.address_family = if addr.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        question.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
        question
            .attributes
            .push(RouteAttribute::Destination(addr.into()));
        // An error means that there is no route.
        let answer = self
            .handle
            .route()
            .get(question)
            .execute()
            .try_next()
            .await
            .ok()??;
        if answer.header.kind != RouteType::Unicast {
            return None;
        }
        let mut device = None;
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(IfIndex(*index)),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
                _ => {}
            }
        }
        device
    }

    /// Returns the neighbours of one family, or the forwarding entries of bridges.
    pub async fn neighbours(&self, family: AddressFamily) -> Result<Vec<Neighbour>> {
        let all = self
            .handle
            .neighbours()
            .get()
            .set_address_family(family)
            .execute()
            .map_ok(|m| Neighbour::from_message(&m));
        all.try_collect()
            .await
            .with_context(|| format!("list {family:?} neighbours"))
    }

    /// Makes the kernel ask who has `addr`, so that the answer shows the bridge behind which port
    /// it is.
    ///
    /// A neighbour that is known already is probed anew: its entry in the bridge's table may have
    /// aged out.
    pub async fn resolve(&self, bridge: IfIndex, addr: IpAddr, known: Option<&Mac>) -> Result<()> {
        let request = self.handle.neighbours().add(bridge.0, addr).replace();
        let request = match known {
            None => request
                .state(NeighbourState::None)
                .flags(NeighbourFlags::Use),
            Some(mac) => request.state(NeighbourState::Probe).link_layer_address(mac),
        };
        let request = request.kind(RouteType::Unspec);
        request
            .execute()
            .await
            .with_context(|| format!("resolve {addr} on device {}", bridge.0))
    }
}
