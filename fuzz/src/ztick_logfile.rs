#![no_main]

#[path = "targets/ztick_logfile.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
