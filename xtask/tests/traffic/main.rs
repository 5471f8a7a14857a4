//! Traffic through Portway in the lab, with a real API server as the source of the objects and an
//! agent on each node.

mod changes;
mod cluster;
mod dsr;
mod firewall;
mod gate;
mod isolated;
mod kill;
mod latency;
mod maglev;
mod measured;
mod narrow;
mod pod_start;
mod policy;
mod reach;
mod sctp;
mod takeover;
mod xdp;
