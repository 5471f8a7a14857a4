//! Clients: processes that connect and send by sockets, and check the peer that they see.

use super::*;

/// Returns the address as an IPv6 socket has it.
pub fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

pub fn tcp(asked: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&asked, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x")?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer[0], b'x');
    assert_eq!(
        stream.peer_addr()?,
        asked,
        "the peer's name is what was asked (getpeername)"
    );
    Ok(answer[1])
}

pub fn udp_socket(asked: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if asked.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends several datagrams by an unconnected socket; asserts that all reach the same backend, and
/// returns it.
pub fn udp(asked: SocketAddr) -> std::io::Result<u8> {
    let socket = udp_socket(asked)?;
    let mut seen = BTreeSet::new();
    for byte in 0..3 {
        socket.send_to(&[byte], asked)?;
        let mut answer = [0; 2];
        let (_, from) = socket.recv_from(&mut answer)?;
        assert_eq!(
            (from, answer[0]),
            (asked, byte),
            "replies come from whom was asked (recvmsg)"
        );
        seen.insert(answer[1]);
    }
    assert_eq!(seen.len(), 1, "datagrams of a socket keep their backend");
    Ok(seen.pop_first().unwrap_or_default())
}

pub fn udp_connected(asked: SocketAddr) -> std::io::Result<u8> {
    let socket = udp_socket(asked)?;
    socket.connect(asked)?;
    assert_eq!(socket.peer_addr()?, asked);
    let mut answer = [0; 2];
    socket.send(b"y")?;
    socket.recv(&mut answer)?;
    socket.send(b"z")?;
    let (_, from) = socket.recv_from(&mut answer)?;
    assert_eq!((from, answer[0]), (asked, b'z'));
    Ok(answer[1])
}

pub fn ask_udp(socket: &UdpSocket, to: Option<SocketAddr>) -> Result<u8> {
    let mut answer = [0; 2];
    match to {
        Some(to) => socket.send_to(b"a", to)?,
        None => socket.send(b"a")?,
    };
    socket.recv(&mut answer)?;
    Ok(answer[1])
}

pub fn ask_tcp(stream: &mut TcpStream) -> Result<u8> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 2];
    stream.write_all(b"t")?;
    stream.read_exact(&mut answer)?;
    Ok(answer[1])
}
