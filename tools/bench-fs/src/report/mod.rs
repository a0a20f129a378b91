//! The results as a table, and as JSON.

mod grid;
mod json;
mod table;

pub use json::print_json;
pub use table::print_table;
