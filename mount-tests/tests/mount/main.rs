//! Tests of btfs on real mounts: see `README.md` beside `Cargo.toml`.

mod commands;
mod crash;
mod damage;
mod data;
mod directories;
mod disks;
mod files;
mod lifecycle;
mod programs;
mod recorded;
mod shell_tools;
mod space;
mod suites;

fn main() {
    let modules: [fn() -> Vec<btfs_mount_tests::runner::Case>; 13] = [
        shell_tools::cases,
        data::cases,
        files::cases,
        directories::cases,
        space::cases,
        lifecycle::cases,
        commands::cases,
        programs::cases,
        suites::cases,
        crash::cases,
        damage::cases,
        disks::cases,
        recorded::cases,
    ];
    let cases: Vec<_> = modules.iter().flat_map(|cases| cases()).collect();
    std::process::exit(btfs_mount_tests::runner::main(&cases));
}
