//! The two ends of a connection as they are typed.

use std::net::IpAddr;
use std::str::FromStr;

use proxy_common::net::Protocol;

use crate::model::ObjectName;

/// An end: `NAMESPACE/POD`, `POD`, an address, or `svc/NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod by name.
    Pod(ObjectName),
    /// An address.
    Address(IpAddr),
    /// The backends of a Service.
    Service(ObjectName),
}

/// A destination: an end, then `:PORT` and, if it is not TCP, `/PROTOCOL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The end.
    pub end: End,
    /// Number or name of a container's port; with a Service, of the Service's port.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
        {
            return Ok(Self::Address(addr.to_canonical()));
        }
        let error = || {
            format!(
                "invalid end `{text}`: expected NAMESPACE/POD, an address or svc/NAMESPACE/SERVICE"
            )
        };
        let parts: Vec<_> = text.split('/').collect();
        if parts
            .iter()
            .any(|part| part.is_empty() || part.contains([':', ' ']))
        {
            return Err(error());
        }
        match *parts.as_slice() {
            ["svc" | "service", namespace, name] => {
                Ok(Self::Service(ObjectName::new(namespace, name)))
            }
            ["pod", namespace, name] => Ok(Self::Pod(ObjectName::new(namespace, name))),
            ["svc" | "service", name] => Ok(Self::Service(ObjectName::new("default", name))),
            ["pod", name] | [name] => Ok(Self::Pod(ObjectName::new("default", name))),
            [namespace, name] => Ok(Self::Pod(ObjectName::new(namespace, name))),
            _ => Err(error()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!(
                "invalid destination `{text}`: expected for example shop/db:5432, svc/shop/db:5432 or 10.0.0.1:53/udp"
            )
        };
        let (end, port) = text.rsplit_once(':').ok_or_else(error)?;
        let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            _ => {
                return Err(format!(
                    "invalid protocol `{protocol}`: expected TCP, UDP or SCTP"
                ));
            }
        };
        // Without brackets, the last group of `fd00::1` would be taken as the port.
        if port.is_empty()
            || port.parse::<u16>() == Ok(0)
            || end.contains(':') && !end.ends_with(']')
        {
            return Err(error());
        }
        Ok(Self {
            end: end.parse()?,
            port: port.to_owned(),
            protocol,
        })
    }
}
