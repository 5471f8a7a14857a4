//! The health endpoints: of the agent and its node (V23), and of Services on this node (V22).

pub mod answer;
mod proxy;
mod services;
mod vitals;

pub use proxy::serve_health;
pub use services::{Checks, answer_at, serve_services};
pub use vitals::{NodeVitals, Progress, TOO_LONG, Vitals};
