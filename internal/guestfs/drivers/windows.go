package drivers

// services are the drivers of Windows that matter, each with its program.
var services = []struct{ name, file string }{
	{"viostor", "viostor.sys"}, {"vioscsi", "vioscsi.sys"}, {"netkvm", "netkvm.sys"}, {"storahci", "storahci.sys"}, {"stornvme", "stornvme.sys"},
	{"intelide", "intelide.sys"}, {"atapi", "atapi.sys"}, {"lsi_sas", "lsi_sas.sys"}, {"pvscsi", "pvscsi.sys"}, {"megasas", "megasas.sys"},
	{"e1iexpress", "e1i63x64.sys"}, {"e1express", "e1e6032e.sys"}, {"e1g60", "E1G6032E.sys"}, {"rtl8139", "rtl8139.sys"},
}

// windows looks for drivers.
func (i *inspector) windows() {
	for _, s := range services {
		x := Service{Name: s.name, Start: -1, File: i.there("/Windows/System32/drivers/" + s.file)}
		x.Start = i.startOf(s.name)
		if x.File || x.Start >= 0 {
			i.g.Services = append(i.g.Services, x)
		}
	}
}

// startOf returns when a driver starts, as the registry has it; -1: it is not
// known there. What Windows found no device for it overrides by the override of the
// hardware profile in use, which is the one numbered 0.
func (i *inspector) startOf(service string) int {
	const hive = "/Windows/System32/config/SYSTEM"
	key := `CurrentControlSet\Services\` + service
	start := i.number(hive, key, "Start")
	if override := i.number(hive, key+`\StartOverride`, "0"); start >= 0 && override >= 0 {
		return override
	}
	return start
}

// number reads a small number from the registry; -1: there is none.
func (i *inspector) number(hive, key, name string) int {
	v, err := i.s.Registry(hive, key, name)
	if err != nil {
		return -1
	}
	n, ok := v.Uint()
	if !ok || n > 100 {
		return -1
	}
	return int(n)
}
