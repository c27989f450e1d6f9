//! Mutexes that are held together with others.
//!
//! In what tests and simulations are made of (the profile `dev`) each of them remembers which ones it was taken under, and a
//! thread that takes two of them in the order that another one forbids panics, whether they meet or not. What is shipped
//! has `parking_lot`'s. The order is in the documentation of what owns them: [`Leader`](crate::leader::Leader).

pub(crate) use tracing_mutex::parkinglot::Mutex;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_orders_are_noticed_without_a_deadlock() {
        let (a, b) = (Mutex::new(1), Mutex::new(2));
        {
            let _first = a.lock();
            drop(b.lock());
        }
        let other_way = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _first = b.lock();
            drop(a.lock());
        }));
        assert!(other_way.is_err());
    }
}
