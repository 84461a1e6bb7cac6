DefinitionBlock ("", "DSDT", 2, "MSFTVM", "DSDT01  ", 0x00000001)
{
    Name (\_S5, Package (0x04)  // _S5_: S5 System State
    {
        Zero, 
        Zero, 
        Zero, 
        Zero
    })
    Scope (\_SB)
    {
        Device (VMOD)
        {
            Name (_HID, "ACPI0004" /* Module Device */)  // _HID: Hardware ID
            Name (_UID, Zero)  // _UID: Unique ID
            Name (_CRS, ResourceTemplate ()  // _CRS: Current Resource Settings
            {
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0x00000000,         // Granularity
                    0xF8000000,         // Range Minimum
                    0xFEBFFFFF,         // Range Maximum
                    0x00000000,         // Translation Offset
                    0x06C00000,         // Length
                    ,, , AddressRangeMemory, TypeStatic)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0x0000000000000000, // Granularity
                    0x00000001C0000000, // Range Minimum
                    0x00000001DFFFFFFF, // Range Maximum
                    0x0000000000000000, // Translation Offset
                    0x0000000020000000, // Length
                    ,, , AddressRangeMemory, TypeStatic)
            })
            Device (VMBS)
            {
                Name (STA, 0x0F)
                Name (_DDN, "VMBUS")  // _DDN: DOS Device Name
                Name (_HID, "MSFT1000")  // _HID: Hardware ID
                Name (_CID, "VMBus")  // _CID: Compatible ID
                Name (_UID, Zero)  // _UID: Unique ID
                Method (_DIS, 0, NotSerialized)  // _DIS: Disable Device
                {
                    STA &= 0x0D
                }

                Method (_PS0, 0, NotSerialized)  // _PS0: Power State 0
                {
                    STA |= 0x0F
                }

                Method (_PS3, 0, NotSerialized)  // _PS3: Power State 3
                {
                }

                Method (_STA, 0, NotSerialized)  // _STA: Status
                {
                    Return (STA) /* \_SB_.VMOD.VMBS.STA_ */
                }

                Name (_CRS, Buffer (0x02)  // _CRS: Current Resource Settings
                {
                     0x79, 0x00                                       // y.
                })
            }
        }

        Device (GENC)
        {
            Name (_HID, "MSFT1002")  // _HID: Hardware ID
            Name (_CID, Package (0x03)  // _CID: Compatible ID
            {
                "VM_Gen_Counter", 
                "VMGENCTR", 
                "Hyper_V_Gen_Counter_V1"
            })
            Name (_UID, Zero)  // _UID: Unique ID
            Name (_DDN, "VM_Gen_Counter")  // _DDN: DOS Device Name
            Name (ADDR, Package (0x02)
            {
                0x0009F000, 
                Zero
            })
        }

        Device (RTC)
        {
            Name (_HID, EisaId ("PNP0B00") /* AT Real-Time Clock */)  // _HID: Hardware ID
            Name (_UID, Zero)  // _UID: Unique ID
            Name (_CRS, ResourceTemplate ()  // _CRS: Current Resource Settings
            {
                IO (Decode16,
                    0x0070,             // Range Minimum
                    0x0070,             // Range Maximum
                    0x01,               // Alignment
                    0x02,               // Length
                    )
                IRQNoFlags ()
                    {8}
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501") /* 16550A-compatible COM Serial Port */)  // _HID: Hardware ID
            Name (_UID, One)  // _UID: Unique ID
            Name (_CRS, ResourceTemplate ()  // _CRS: Current Resource Settings
            {
                IO (Decode16,
                    0x03F8,             // Range Minimum
                    0x03F8,             // Range Maximum
                    0x01,               // Alignment
                    0x08,               // Length
                    )
                IRQNoFlags ()
                    {4}
            })
        }

        Device (C000)
        {
            Name (_HID, "ACPI0007" /* Processor Device */)  // _HID: Hardware ID
            Name (_UID, Zero)  // _UID: Unique ID
        }

        Device (C001)
        {
            Name (_HID, "ACPI0007" /* Processor Device */)  // _HID: Hardware ID
            Name (_UID, One)  // _UID: Unique ID
        }
    }

    Scope (\_GPE)
    {
        Method (_E00, 0, NotSerialized)  // _Exx: Edge-Triggered GPE, xx=0x00-0xFF
        {
            Notify (\_SB.GENC, 0x80) // Status Change
        }
    }
}

