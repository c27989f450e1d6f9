//! What all of them do.

/// Orders that each test goes through.
const ORDERS: usize = 2_000;

/// Runs it in many orders; a failed one prints how to see it again.
pub fn check(test: impl Fn() + Send + Sync + 'static) {
    let test = std::sync::Arc::new(test);
    let again = test.clone();
    shuttle::check_random(move || test(), ORDERS);
    // Few switches in unlikely places, which chance alone seldom finds.
    shuttle::check_pct(move || again(), ORDERS, 3);
}
