//! SIGTERM and SIGINT mean: write everything out, then go.

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Context, Failure};

/// Completes with the signal's name when the process is asked to end.
///
/// # Errors
/// If the signals can't be listened for.
pub fn listen() -> Result<impl Future<Output = &'static str>, Failure> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
