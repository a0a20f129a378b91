pub fn cases() -> Vec<btfs_mount_tests::runner::Case> {
    vec![]
}
