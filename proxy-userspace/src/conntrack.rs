//! The connections that the host's own connection tracking has, to be followed from the first
//! attach on (P25): a reply passes only if its connection is known.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the lists of netlink's attributes are open"
)]

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status,
    Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};
use proxy_common::net::Protocol;

use crate::tracked::Tracked;

/// `enum tcp_conntrack`: from here on both ends have closed, or one has reset it.
const TCP_TIME_WAIT: u8 = 7;
/// Size of the buffer for an answer: the most that the kernel puts into one.
const ANSWER: usize = 64 * 1024;

/// Returns the open connections that the connection tracking of this network namespace has.
///
/// # Errors
/// If the kernel has no connection tracking, or does not list it.
pub fn tracked() -> Result<Vec<Tracked>> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket
        .connect(&NetlinkAddr::new(0, 0))
        .context("connect a netlink socket to the kernel")?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let all = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let ask = NetfilterMessage::new(all, ConntrackMessage::Get(Vec::new()));
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(ask));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket
        .send(&bytes, 0)
        .context("request tracked connections")?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; ANSWER]);
    loop {
        let len = socket
            .recv(&mut &mut buffer[..], 0)
            .context("receive tracked connections")?;
        ensure!(len <= buffer.len(), "the kernel's answer has {len} bytes");
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                .context("read a tracked connection")?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => {
                    return Err(error.to_io()).context("request tracked connections");
                }
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                    ..
                }) => found.extend(read(&attributes)),
                other => bail!("unexpected answer of the kernel: {other:?}"),
            }
            // Messages are aligned to four bytes.
            let len = (message.header.length as usize).next_multiple_of(4);
            ensure!(len > 0, "the kernel sent an empty message");
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}

/// Returns the connection, if it is open and its protocol has ports.
fn read(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let (mut original, mut reply, mut answered) = (None, None, false);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = tuple(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = tuple(parts),
            ConntrackAttribute::CtaStatus(status) => answered = status.contains(Status::SeenReply),
            ConntrackAttribute::CtaProtoInfo(infos) if infos.iter().any(is_over) => return None,
            _ => {}
        }
    }
    let ((protocol, src, dst), (_, from, to)) = (original?, reply?);
    Some(Tracked {
        protocol,
        original: (src, dst),
        reply: (from, to),
        answered,
    })
}

fn is_over(info: &ProtoInfo) -> bool {
    let ProtoInfo::TCP(parts) = info else {
        return false;
    };
    parts
        .iter()
        .any(|part| matches!(part, ProtoInfoTCP::State(state) if *state >= TCP_TIME_WAIT))
}

fn tuple(parts: &[Tuple]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (mut src, mut dst, mut protocol, mut sport, mut dport) = (None, None, None, None, None);
    for part in parts {
        match part {
            Tuple::Ip(addresses) => addresses.iter().for_each(|part| match part {
                IPTuple::SourceAddress(addr) => src = Some(*addr),
                IPTuple::DestinationAddress(addr) => dst = Some(*addr),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(number) => protocol = Some(Protocol((*number).into())),
                ProtoTuple::SourcePort(port) => sport = Some(*port),
                ProtoTuple::DestinationPort(port) => dport = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let protocol = protocol
        .filter(|protocol| [Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(protocol))?;
    Some((
        protocol,
        SocketAddr::new(src?, sport?),
        SocketAddr::new(dst?, dport?),
    ))
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::conntrack::Protocol as Number;

    use super::*;

    fn tuple(number: Number, src: &str, dst: &str) -> Vec<Tuple> {
        let (src, dst): (SocketAddr, SocketAddr) =
            (src.parse().expect("an end"), dst.parse().expect("an end"));
        vec![
            Tuple::Ip(vec![
                IPTuple::SourceAddress(src.ip()),
                IPTuple::DestinationAddress(dst.ip()),
            ]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(number),
                ProtoTuple::SourcePort(src.port()),
                ProtoTuple::DestinationPort(dst.port()),
            ]),
        ]
    }

    fn entry(
        number: Number,
        original: [&str; 2],
        reply: [&str; 2],
        state: u8,
    ) -> Vec<ConntrackAttribute> {
        vec![
            ConntrackAttribute::CtaTupleOrig(tuple(number, original[0], original[1])),
            ConntrackAttribute::CtaTupleReply(tuple(number, reply[0], reply[1])),
            ConntrackAttribute::CtaStatus(Status::SeenReply | Status::Assured),
            ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![ProtoInfoTCP::State(
                state,
            )])]),
        ]
    }

    const ESTABLISHED: u8 = 3;

    #[test]
    fn p25_a_connection_is_read_with_both_directions_unless_it_is_over() {
        let (original, reply) = (
            ["10.244.1.2:40000", "10.96.0.5:80"],
            ["10.244.2.3:8080", "10.244.1.2:40000"],
        );
        let found = read(&entry(Number::Tcp, original, reply, ESTABLISHED)).expect("a connection");
        let end = |text: &str| text.parse::<SocketAddr>().expect("an end");
        assert_eq!((found.protocol, found.answered), (Protocol::TCP, true));
        assert_eq!(found.original, (end(original[0]), end(original[1])));
        assert_eq!(found.reply, (end(reply[0]), end(reply[1])));
        assert_eq!(
            read(&entry(Number::Tcp, original, reply, TCP_TIME_WAIT)),
            None
        );
        assert_eq!(
            read(&entry(Number::Icmp, original, reply, ESTABLISHED)),
            None,
            "it has no ports"
        );
        assert_eq!(
            read(&entry(Number::Tcp, original, reply, ESTABLISHED)[1..]),
            None,
            "one direction alone is no connection"
        );
    }

    #[test]
    fn p25_the_ends_that_are_pods_count_and_p18_the_host_as_itself() {
        let is = |text: &'static str| move |addr: std::net::IpAddr| addr.to_string() == text;
        let (pod, host) = (is("10.244.1.2"), is("192.0.2.1"));
        let read = |original, reply| {
            read(&entry(Number::Udp, original, reply, ESTABLISHED)).expect("a connection")
        };
        let asks = read(
            ["10.244.1.2:1", "10.96.0.5:80"],
            ["10.244.2.3:8080", "10.244.1.2:1"],
        );
        let probe = read(
            ["192.0.2.1:1", "10.244.1.2:80"],
            ["10.244.1.2:80", "192.0.2.1:1"],
        );
        let masqueraded = read(
            ["198.51.100.7:1", "192.0.2.1:30080"],
            ["10.244.1.2:80", "192.0.2.1:9"],
        );
        let outward = read(
            ["192.0.2.1:1", "192.0.2.2:80"],
            ["192.0.2.2:80", "192.0.2.1:1"],
        );
        assert_eq!(
            [asks, probe, masqueraded, outward].map(|one| one.concerns(pod)),
            [true, true, true, false]
        );
        assert_eq!(
            [asks, probe, masqueraded, outward].map(|one| one.is_own(host)),
            [false, true, false, true]
        );
    }
}
