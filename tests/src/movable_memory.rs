//! What a guest's kernel keeps in memory that it could give back.

/// Guest function `movable_holds NODE CPU`: what a CPU writes to a file on /mnt, a tmpfs, is in the memory of a NUMA node whose content
/// can be moved elsewhere, and stays what it was. That is where memory comes that was brought online to be movable.
pub const HOLDS: &str = r#"
movable() { awk "/^Node/ { on = /^Node $1,.*Movable/ } on && /pages free/ { print int(\$3 / 256) }" /proc/zoneinfo; }
movable_holds() {
free=$(movable $1); taskset -c $2 dd if=/dev/urandom of=/mnt/x bs=1M count=96 2>/dev/null
[ $(movable $1) -le $((free - 90)) ]; sum=$(crc32 /mnt/x); echo 3 >/proc/sys/vm/drop_caches; [ "$(crc32 /mnt/x)" = "$sum" ]
}
"#;
