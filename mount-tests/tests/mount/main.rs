//! Tests of btfs on real mounts: see `README.md` beside `Cargo.toml`.

mod crash;
mod damage;
mod data;
mod directories;
mod files;
mod lifecycle;
mod programs;
mod shell_tools;
mod suites;

fn main() {
    let modules: [fn() -> Vec<btfs_mount_tests::runner::Case>; 9] = [
        shell_tools::cases,
        data::cases,
        files::cases,
        directories::cases,
        lifecycle::cases,
        programs::cases,
        suites::cases,
        crash::cases,
        damage::cases,
    ];
    let cases: Vec<_> = modules.iter().flat_map(|cases| cases()).collect();
    std::process::exit(btfs_mount_tests::runner::main(&cases));
}
