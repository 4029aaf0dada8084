//! Waiting for a condition, with a deadline, instead of sleeping.

use std::time::{Duration, Instant};

/// Time between two evaluations of a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Evaluates `condition` until it returns something, and returns that.
///
/// # Panics
/// Nothing within `deadline`: the message names the condition.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_holds_in_time_is_returned() {
        let mut looks = 0;
        let found = eventually("three looks", Duration::from_secs(5), async || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.await, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "not within 10ms: the sea runs dry")]
    async fn a_deadline_that_passes_names_the_condition() {
        eventually("the sea runs dry", Duration::from_millis(10), async || None::<()>).await;
    }
}
