//! How long a test waits for a condition before it fails.

use std::sync::LazyLock;
use std::time::Duration;

/// How many times slower than usual this machine is: a whole number. `cargo xtask test kernels`
/// sets it in its guests, which QEMU emulates.
const VARIABLE: &str = "PD_ROUTER_TEST_SLOWNESS";

static SLOWNESS: LazyLock<u32> = LazyLock::new(|| slowness(std::env::var(VARIABLE).ok()));

fn slowness(value: Option<String>) -> u32 {
    let Some(value) = value else { return 1 };
    let parsed = value.parse().ok().filter(|slowness| *slowness > 0);
    parsed.unwrap_or_else(|| panic!("{VARIABLE} is `{value}`, which is no whole number above 0"))
}

/// A deadline of a usual machine, multiplied by how many times slower this one is.
#[must_use]
pub fn patience(usual: Duration) -> Duration {
    usual * *SLOWNESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_the_usual_ones_without_the_variable() {
        assert_eq!((slowness(None), slowness(Some("10".to_owned()))), (1, 10));
    }

    #[test]
    #[should_panic(expected = "PD_ROUTER_TEST_SLOWNESS is `0`")]
    fn a_slowness_of_zero_is_refused() {
        slowness(Some("0".to_owned()));
    }
}
