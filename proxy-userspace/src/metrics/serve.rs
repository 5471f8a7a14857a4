//! Serves `/metrics` (V24).

use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;

use super::text::{Exporter, Format};
use crate::http;

/// Serves the metrics until the agent ends.
///
/// # Errors
/// If `bind` cannot be listened on.
pub async fn serve_metrics(bind: SocketAddr, exporter: Exporter) -> Result<()> {
    let metrics = |State(exporter): State<Exporter>, headers: HeaderMap| async move {
        let format = Format::accepted(
            headers
                .get(header::ACCEPT)
                .and_then(|accept| accept.to_str().ok()),
        );
        match exporter.text(format) {
            Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
            }
        }
    };
    http::serve(
        bind,
        Router::new()
            .route("/metrics", get(metrics))
            .with_state(exporter),
    )
    .await
}
