# From the monitor's entry to 64-bit ring 3, in as few ring-0 instructions as can be: a backend that runs only
# ring 3 natively emulates each of them (about a microsecond apiece). All tables are therefore made by the
# assembler, and .bss is cleared in ring 3.

.set KERNEL_CODE, 0x10
.set KERNEL_DATA, 0x18
.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set TSS_SELECTOR, 0x40
.set AP_TSS_SELECTOR, 0x50
.set TSS_BASE, 0x101000
.set TSS_LIMIT, 0x68 + 0x2000           # the last byte of the bitmap's end marker
.set CR0_VALUE, 0x80010033              # PG WP NE ET MP PE
.set CR4_VALUE, 0x620                   # OSXMMEXCPT OSFXSR PAE
.set EFER, 0xc0000080
.set EFER_VALUE, 0x100                  # LME

# XEN_ELFNOTE_PHYS32_ENTRY: where a monitor that knows PVH enters.
.section .note.pvh, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_entry

.section .boot, "ax"

# PVH: 32-bit protected mode without paging, EBX = hvm_start_info.
.code32
.globl pvh_entry
pvh_entry:
    mov edi, ebx
    xor esi, esi
    lgdt [gdt_pointer]
    mov eax, CR4_VALUE
    mov cr4, eax
    mov eax, offset page_map_level_4
    mov cr3, eax
    mov ecx, EFER
    mov eax, EFER_VALUE
    xor edx, edx
    wrmsr
    mov eax, CR0_VALUE
    mov cr0, eax
    .byte 0xea                          # ljmp KERNEL_CODE:long_mode
    .long long_mode
    .word KERNEL_CODE

# The 64-bit Linux entry: long mode with an identity map, RSI = boot_params.
.code64
.globl linux_entry
linux_entry:
    mov edi, esi
    mov esi, 1
    lgdt [gdt_pointer]
    mov eax, CR4_VALUE
    mov cr4, rax
    mov eax, offset page_map_level_4
    mov cr3, rax
    mov eax, CR0_VALUE
    mov cr0, rax

# EDI = boot information, ESI = 0 for PVH, 1 for Linux.
long_mode:
    lidt [idt_pointer]
    mov byte ptr [tss_descriptor + 5], 0x89  # not busy, should the guest be entered a second time
    mov eax, TSS_SELECTOR
    ltr ax
    mov esp, offset __interrupt_stack_top
    push USER_DATA
    push offset __stack_top
    push 2
    push USER_CODE
    push offset ring_3
    iretq

# From here on everything is native. The first thing is to note the time, for task `entered`.
ring_3:
    rdtsc
    shl rdx, 32
    or rdx, rax
    mov r13, rdx
    mov r12d, edi
    mov ebx, esi
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    mov edi, offset __bss_start
    mov ecx, offset __bss_end
    sub ecx, edi
    shr ecx, 3
    xor eax, eax
    rep stosq
    mov rdi, r12
    mov esi, ebx
    mov rdx, r13
    call guest_main
    ud2

# Where an application processor arrives in long mode, through the page copied from ap_trampoline.
ap_long_mode:
    lidt [idt_pointer]
    mov byte ptr [tss_descriptor + 5], 0x89  # not busy, should the guest be entered a second time
    mov eax, AP_TSS_SELECTOR
    ltr ax
    mov rsp, [ap_interrupt_stack]
    push USER_DATA
    push qword ptr [ap_stack]
    push 2
    push USER_CODE
    push offset ap_ring_3
    iretq
ap_ring_3:
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    call ap_main
    ud2

# Copied to AP_TRAMPOLINE (a page below 1 MiB) and entered in real mode with CS = page, IP = 0.
.code16
.globl ap_trampoline
ap_trampoline:
    mov eax, CR4_VALUE
    mov cr4, eax
    mov eax, offset page_map_level_4
    mov cr3, eax
    mov ecx, EFER
    mov eax, EFER_VALUE
    xor edx, edx
    wrmsr
    .byte 0x2e, 0x66, 0x0f, 0x01, 0x16  # lgdtd cs:[ap_gdt_pointer - ap_trampoline]
    .word ap_gdt_pointer - ap_trampoline
    mov eax, CR0_VALUE
    mov cr0, eax
    .byte 0x66, 0xea                    # ljmp KERNEL_CODE:ap_long_mode
    .long ap_long_mode
    .word KERNEL_CODE
.balign 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.globl ap_trampoline_end
ap_trampoline_end:
.code64

.balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 8
idt_pointer:
    .word 0xfff
    .quad IDT
no_idt_pointer:
    .word 0
    .quad 0

# The TSS: RSP0 for interrupts, and an I/O bitmap of zeroes, so that ring 3 may reach every port.
.section .tss, "aw"
.globl tss
tss:
    .long 0
    .quad __interrupt_stack_top
    .fill 0x66 - 12, 1, 0
    .word 0x68
    .fill 0x2000, 1, 0
    .byte 0xff

.section .tables, "aw"
.balign 4096
# The first 4 GiB, in 2 MiB pages with U=1; memory.rs adds what lies above when it is needed.
.globl page_map_level_4
page_map_level_4:
    .quad page_directory_pointers + 7
    .fill 511, 8, 0
.globl page_directory_pointers
page_directory_pointers:
    .quad page_directories + 0x0007
    .quad page_directories + 0x1007
    .quad page_directories + 0x2007
    .quad page_directories + 0x3007
    .fill 508, 8, 0
page_directories:
    .set address, 0
    .rept 2048
    .quad address + 0x87
    .set address, address + 0x200000
    .endr

# Selectors as Linux has them: a backend may insist on these in ring 3.
.balign 16
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff            # 0x10 ring-0 code, 64-bit
    .quad 0x00cf93000000ffff            # 0x18 ring-0 data
    .quad 0
    .quad 0x00cff3000000ffff            # 0x28 ring-3 data
    .quad 0x00affb000000ffff            # 0x30 ring-3 code, 64-bit
    .quad 0
tss_descriptor:
    .quad 0x0000890000000000 | (TSS_BASE << 16) | TSS_LIMIT
    .quad 0
.globl ap_tss_descriptor
ap_tss_descriptor:                      # 0x50, written anew for each processor
    .quad 0, 0
gdt_end:

# Where the processor being started finds its stacks.
.globl ap_stack, ap_interrupt_stack
ap_stack: .quad 0
ap_interrupt_stack: .quad 0

# Interrupt stubs, 32 bytes each, for vectors 0 to 255.
.section .text.vectors, "ax"
.balign 32
.globl vector_stubs
vector_stubs:
.set vector, 0
.rept 32
    .balign 32
    .if vector == 3                     # ring 3 asks for service ESI
    jmp qword ptr [services + rsi * 8]
    .elseif (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
.endr
.rept 224
    .balign 32
    push rax                            # a device's interrupt: count it and end it (xAPIC)
    lock inc qword ptr [INTERRUPT_COUNTS + 8 * vector]
    jmp end_of_interrupt
    .set vector, vector + 1
.endr

# The ring-0 services, by their numbers in cpu.rs. The breakpoint is their gate: it is the one software interrupt
# that reaches the guest's IDT from ring 3 on every backend.
services:
    .quad enable_interrupts, disable_interrupts, halt_once, read_msr, write_msr, forget_idt
    .quad halt_forever
enable_interrupts:
    or qword ptr [rsp + 16], 0x200
    iretq
disable_interrupts:
    and qword ptr [rsp + 16], -0x201
    iretq
halt_once:
    sti
    hlt
    iretq
read_msr:
    rdmsr
    iretq
write_msr:
    wrmsr
    iretq
forget_idt:
    lidt [no_idt_pointer]
    iretq
halt_forever:
    cli
    hlt
    jmp halt_forever

.balign 32
end_of_interrupt:
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq

# Keeps what is known of the exception and goes on in ring 3 with its report.
exception:
    pop qword ptr [EXCEPTION]
    pop qword ptr [EXCEPTION + 8]
    mov rax, [rsp]
    mov [EXCEPTION + 16], rax
    mov rax, [rsp + 24]
    mov [EXCEPTION + 24], rax
    mov rax, cr2
    mov [EXCEPTION + 32], rax
    mov qword ptr [rsp], offset exception_main
    mov qword ptr [rsp + 8], USER_CODE
    mov qword ptr [rsp + 16], 2
    mov qword ptr [rsp + 24], offset __stack_top - 8
    mov qword ptr [rsp + 32], USER_DATA
    iretq
