//! The leader's memory comes with leadership and goes with it.

use std::sync::Arc;

use super::PAUSE;
use crate::node::Node;

/// Runs for as long as the server does.
pub(super) async fn run(node: Arc<Node>) {
    let mut changes = node.consensus.watch_leadership();
    loop {
        changes.mark_unchanged();
        node.step_down_if_over();
        // Before anybody asks: there is work to do.
        let _ = node.lead_unasked().await;
        let is_settled = node.is_settled();
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // Elected, and not yet ready to lead.
            () = tokio::time::sleep(PAUSE), if !is_settled => {}
        }
    }
}
