//! libFuzzer's program for the target `mount`.
#![no_main]

use btfs_fuzz::{Target, memory};

#[global_allocator]
static HEAP: memory::Counting = memory::Counting;

libfuzzer_sys::fuzz_target!(init: memory::watch(), |bytes: &[u8]| {
    memory::case_begins();
    if let Err(wrong) = btfs_fuzz::run(Target::Mount, bytes) {
        panic!("{wrong}");
    }
    memory::case_ends();
});
