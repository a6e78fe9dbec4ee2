//! Rate limits of disks and networks, and `--rate-limit-group`.

use super::options::{ByteSize, Field, Setting, options};
use super::validate::ConfigError;
use serde::{Deserialize, Serialize};

/// A token bucket: `size` tokens are put in every `refill_time` milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Bytes, or operations.
    pub size: u64,
    /// Tokens in excess of `size` that can be spent once.
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills.
    pub refill_time: u64,
}

/// Limits of bytes and of operations; what is not given is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    pub bandwidth: Option<TokenBucketConfig>,
    /// Operations.
    pub ops: Option<TokenBucketConfig>,
}

impl RateLimiterConfig {
    /// Checks the limits of what `option` names.
    ///
    /// # Errors
    /// When one would let nothing pass.
    pub fn check(&self, option: &str) -> Result<(), ConfigError> {
        let error = |reason: String| Err(ConfigError { option: option.to_owned(), reason });
        for (prefix, bucket) in [("bw", self.bandwidth), ("ops", self.ops)] {
            let Some(bucket) = bucket else { continue };
            if bucket.size == 0 {
                return error(format!("{prefix}_size is 0 or missing, which would let nothing pass"));
            }
            if bucket.refill_time == 0 {
                return error(format!(
                    "{prefix}_refill_time is 0 or missing; give milliseconds, such as 1000"
                ));
            }
        }
        Ok(())
    }
}

const fn key(key: &'static str, path: &'static str, doc: &'static str) -> Field {
    Field { key, path, hint: "<number>", doc, range: None, default: None, bare: false }
}

const fn size(key: &'static str, path: &'static str, doc: &'static str) -> Field {
    Field { key, path, hint: ByteSize::HINT, doc, range: None, default: None, bare: false }
}

/// The command line's keys of a rate limit that is the field `rate_limiter_config` of its option.
pub const RATE_LIMIT_KEYS: &[Field] = &[
    size("bw_size", "rate_limiter_config.bandwidth.size", "Bytes that may pass in `bw_refill_time`."),
    size(
        "bw_one_time_burst",
        "rate_limiter_config.bandwidth.one_time_burst",
        "Bytes that may pass once beyond that.",
    ),
    key(
        "bw_refill_time",
        "rate_limiter_config.bandwidth.refill_time",
        "Milliseconds in which `bw_size` comes anew.",
    ),
    key("ops_size", "rate_limiter_config.ops.size", "Operations that may pass in `ops_refill_time`."),
    key(
        "ops_one_time_burst",
        "rate_limiter_config.ops.one_time_burst",
        "Operations that may pass once beyond that.",
    ),
    key(
        "ops_refill_time",
        "rate_limiter_config.ops.refill_time",
        "Milliseconds in which `ops_size` comes anew.",
    ),
];

options! {
    /// A rate limit that several disks share.
    pub struct RateLimitGroupConfig {
        /// Name of the group, for --disk.
        ["id"] id: String = String::new(),
        /// The limits.
        [nested RATE_LIMIT_KEYS] rate_limiter_config: RateLimiterConfig = RateLimiterConfig::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::config::key_value::from_str;

    #[test]
    fn bytes_can_have_a_unit_and_operations_are_numbers() {
        let fields = RateLimitGroupConfig::FIELDS;
        let group: RateLimitGroupConfig =
            from_str("id=g,bw_size=1M,bw_refill_time=100,ops_size=0x10", fields).unwrap();
        let limits = group.rate_limiter_config;
        assert_eq!(limits.bandwidth.map(|bytes| bytes.size), Some(1 << 20));
        assert_eq!(limits.ops.map(|operations| operations.size), Some(16));
        for (text, told) in [
            (
                "bw_size=1X",
                "bw_size: \"1X\" is not a size; write a number of bytes, or one with K, M, G or T",
            ),
            ("ops_size=1M", "ops_size: \"1M\" is not a whole number; write one like 4 or 0x10"),
        ] {
            assert_eq!(from_str::<RateLimitGroupConfig>(text, fields).unwrap_err().to_string(), told);
        }
    }
}
