//! The HTTP server that health and metrics share.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::Router;
use tokio::net::TcpListener;

/// Serves `router` at `bind` until the future is dropped.
///
/// # Errors
/// If `bind` cannot be listened on.
pub async fn serve(bind: SocketAddr, router: Router) -> Result<()> {
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("listen on {bind}"))?;
    axum::serve(listener, router)
        .await
        .with_context(|| format!("serve on {bind}"))
}
