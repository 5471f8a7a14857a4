//! The node of these tests: its addresses, its servers, its data plane and the contents of its maps.

use super::*;

/// The addresses of one family.
pub struct Side {
    pub node: IpAddr,
    pub vip: IpAddr,
    /// A cluster IP without backends.
    pub empty: IpAddr,
    pub backends: [IpAddr; 2],
    pub loopback: IpAddr,
    pub unspecified: IpAddr,
}

pub fn sides() -> [Side; 2] {
    let v4 = |a, b, c, d| IpAddr::from([a, b, c, d]);
    let v6 = |a, b| IpAddr::from(Ipv6Addr::new(0xfd00, a, 0, 0, 0, 0, 0, b));
    [
        Side {
            node: v4(192, 0, 2, 1),
            vip: v4(10, 96, 0, 10),
            empty: v4(10, 96, 0, 11),
            backends: [v4(10, 244, 9, 1), v4(10, 244, 9, 2)],
            loopback: Ipv4Addr::LOCALHOST.into(),
            unspecified: Ipv4Addr::UNSPECIFIED.into(),
        },
        Side {
            node: v6(1, 1),
            vip: v6(0x96, 10),
            empty: v6(0x96, 11),
            backends: [v6(0x244, 1), v6(0x244, 2)],
            loopback: Ipv6Addr::LOCALHOST.into(),
            unspecified: Ipv6Addr::UNSPECIFIED.into(),
        },
    ]
}

/// Runs `work` in a network namespace of its own, with mounts of its own.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("make namespaces, as root")?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        work()
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

pub async fn wire() -> Result<()> {
    let (connection, handle, _) = new_connection().context("open netlink")?;
    let task = tokio::spawn(connection);
    handle
        .link()
        .set(LinkUnspec::new_with_name("lo").up().build())
        .execute()
        .await
        .context("set lo up")?;
    for side in sides() {
        for ip in side.backends.into_iter().chain([side.node]) {
            let len = if ip.is_ipv4() { 32 } else { 128 };
            handle
                .address()
                .add(1, ip, len)
                .execute()
                .await
                .with_context(|| format!("add {ip}"))?;
            // The kernel makes an IPv6 address and its route usable some time later.
            let begin = Instant::now();
            while UdpSocket::bind((ip, 0))
                .and_then(|socket| socket.connect((ip, TARGET)))
                .is_err()
            {
                ensure!(begin.elapsed() < PATIENCE, "{ip} cannot be used");
                tokio::task::yield_now().await;
            }
        }
    }
    task.abort();
    Ok(())
}

/// Starts servers that answer with the request and their address's last byte.
pub fn serve(backend: IpAddr) -> Result<()> {
    let tcp = TcpListener::bind((backend, TARGET)).context("listen")?;
    let udp = UdpSocket::bind((backend, TARGET)).context("bind")?;
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    let _sent = stream.write_all(&[byte[0], last_byte(backend)]);
                }
            });
        }
    });
    thread::spawn(move || {
        let mut byte = [0];
        while let Ok((_, from)) = udp.recv_from(&mut byte) {
            let _sent = udp.send_to(&[byte[0], last_byte(backend)], from);
        }
    });
    Ok(())
}

fn last_byte(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    }
}

/// Returns cluster IPs and nodePorts for both protocols and families, with this number of backends.
pub fn contents(backends: usize) -> Contents {
    let mut contents = Contents {
        config: Config {
            secret: 5,
            hz: 250,
            ..Config::default()
        },
        ..Contents::default()
    };
    for side in sides() {
        let endpoint = |ip: &IpAddr| Endpoint {
            addr: SocketAddr::new(*ip, TARGET),
            flags: 1,
        };
        let all = |n: usize| {
            Arc::new(Backends {
                both: side.backends[..n].iter().map(endpoint).collect(),
                ..Backends::default()
            })
        };
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let mut add = |addr, port, flags, n| {
                let has = if n == 0 { "empty" } else { "web" };
                let service = format!("default/{has}:{}", protocol.name()).into();
                let target = Target {
                    service,
                    flags,
                    affinity: 0,
                    backends: all(n),
                };
                contents.frontends.insert(
                    Frontend {
                        addr,
                        port,
                        protocol,
                    },
                    target,
                );
            };
            add(side.vip, PORT, ServiceFlags::CLUSTER_IP, backends);
            add(
                side.unspecified,
                NODE_PORT,
                ServiceFlags::NODE_PORT,
                backends,
            );
            add(side.empty, PORT, ServiceFlags::CLUSTER_IP, 0);
        }
        contents.addresses.insert(
            side.node,
            AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS),
        );
        contents
            .addresses
            .insert(side.vip, AddressFlags(AddressFlags::CLUSTER_IP));
    }
    contents
}

/// The data plane of the test's node.
pub struct Node {
    pub options: Options,
    pub plane: Option<Dataplane>,
    pub actual: Actual,
}

impl Node {
    pub fn start(cgroup: CgroupChoice) -> Result<Self> {
        let state_dir =
            std::env::temp_dir().join(format!("portway-sockets-{}", std::process::id()));
        let options = Options {
            state_dir,
            xdp: XdpChoice::Off,
            cgroup,
        };
        let mut node = Self {
            options,
            plane: None,
            actual: Actual::default(),
        };
        node.restart()?;
        Ok(node)
    }

    /// Replaces the agent by another one.
    pub fn restart(&mut self) -> Result<()> {
        self.plane = None;
        let plane = Dataplane::open(&self.options).context("open the data plane")?;
        self.actual = plane.read()?;
        self.plane = Some(plane);
        Ok(())
    }

    pub fn plane(&mut self) -> Result<&mut Dataplane> {
        self.plane.as_mut().context("find the data plane")
    }

    pub fn bring(&mut self, contents: &Contents) -> Result<()> {
        let writes = place(contents, &self.actual);
        let plane = self.plane.as_mut().context("find the data plane")?;
        let errors = plane.apply(writes, &mut self.actual);
        ensure!(errors.is_empty(), "{errors:?}");
        Ok(())
    }

    pub fn attach(&mut self) -> Result<()> {
        let refused = self.plane()?.attach(&Devices::default())?;
        ensure!(refused.is_empty(), "{refused:?}");
        Ok(())
    }

    pub fn counted(&self, index: u32) -> Result<u64> {
        let plane = self.plane.as_ref().context("find the data plane")?;
        Ok(plane.open_maps()?.counters()?[index as usize])
    }
}

/// Returns the addresses at which a process reaches a backend.
pub fn frontends(side: &Side) -> Vec<SocketAddr> {
    let ports = [
        (side.vip, PORT),
        (side.node, NODE_PORT),
        (side.loopback, NODE_PORT),
    ];
    ports.map(|(ip, port)| SocketAddr::new(ip, port)).into()
}

/// Returns the first backend as the only serving endpoint of every service port.
pub fn serving(node: &Node) -> Serving {
    let first: BTreeSet<SocketAddr> = sides()
        .iter()
        .map(|side| SocketAddr::new(side.backends[0], TARGET))
        .collect();
    let ids = node.actual.services().values().map(|service| service.id);
    Serving {
        endpoints: ids
            .map(|id| (id, first.clone()))
            .collect::<BTreeMap<_, _>>(),
        unknown_from: u32::MAX,
    }
}
