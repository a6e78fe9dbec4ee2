//! The OpenAPI 3.1 document of the API.
//!
//! It is made from the routes and the types of their bodies and answers, by a test that also keeps it true; the binary carries
//! the result.

/// The document, as served.
pub const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

#[cfg(test)]
mod generator;
