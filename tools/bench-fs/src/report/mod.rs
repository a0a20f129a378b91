//! The results as a table, and as JSON.

mod json;
mod table;

pub use json::print_json;
pub use table::print_table;
